"""Perplexity: sums over all tokens, divided once; the file alone gives the same numbers."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from xmae_jax.data.text import Tokenizer
from xmae_jax.data.tokenizer_training import train_tokenizer
from xmae_jax.evaluators.perplexity import Perplexity, perplexities

TEXTS = ["The heart is normal.", "No effusion. The lungs are clear.", ""]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    some = [f"{text} {i}" for i in range(40) for text in TEXTS]
    path.write_bytes(train_tokenizer(some, vocab=400, language="en", fewer=True))
    return Tokenizer.load(path)


def rows(tokenizer):
    made = []
    for i, text in enumerate(TEXTS):
        ids = [*tokenizer.encode(text), 1] if text else []
        padded = np.zeros(40, np.int32)
        padded[: len(ids)] = ids
        each = np.where(np.arange(40) < len(ids), 0.1 * (i + 1), 0.0).astype(np.float32)
        made.append(
            {"id": np.array([0, i]), "text": padded, "tokens": np.array(len(ids)),
             "nll": each.sum(), "token_nll": each}
        )  # fmt: skip
    return made


def test_it_is_a_mean_over_tokens_and_not_over_studies(tokenizer, tmp_path):
    made = rows(tokenizer)
    lengths = [int(row["tokens"]) for row in made]
    assert lengths[0] != lengths[1]
    evaluator = Perplexity(tokenizer)
    metrics, text = evaluator.evaluate({"train": made[2:].__iter__, "val": made.__iter__})
    val = metrics["splits"]["val"]
    want = (0.1 * lengths[0] + 0.2 * lengths[1]) / sum(lengths)
    assert val["nll"] == pytest.approx(want, rel=1e-6)
    assert val["perplexity"] == pytest.approx(math.exp(want), rel=1e-6)
    assert (val["studies"], val["tokens"]) == (2, sum(lengths))
    bits = want * sum(lengths) / math.log(2) / sum(map(len, TEXTS))
    assert val["bits_per_character"] == pytest.approx(bits, rel=1e-6)
    assert metrics["splits"]["train"]["perplexity"] is None
    assert perplexities(text) == metrics
    told = evaluator.table(metrics)
    assert "perplexity (train): no text" in told and f"{val['perplexity']:.3f} a token" in told
    evaluator.draw(made, tmp_path / "page.png", title="a run")
    page = np.asarray(Image.open(tmp_path / "page.png")).astype(int)
    assert (page[..., 0] > page[..., 1] + 5).any()  # some red


@pytest.mark.parametrize("nll", [800.0, np.inf, np.nan])
def test_a_model_that_diverges_ends_nothing(tokenizer, tmp_path, nll):
    made = rows(tokenizer)[:1]
    made[0]["token_nll"] = np.where(made[0]["token_nll"] > 0, np.float32(nll), 0)
    made[0]["nll"] = made[0]["token_nll"].sum()
    evaluator = Perplexity(tokenizer)
    metrics, _ = evaluator.evaluate({"val": made.__iter__})
    val = metrics["splits"]["val"]
    assert val["perplexity"] is None and (val["nll"] is None) == (not np.isfinite(nll))
    assert json.dumps(metrics, allow_nan=False)
    assert "perplexity (val): no finite number" in evaluator.table(metrics)
    evaluator.draw(made, tmp_path / "page.png", title="a run")
