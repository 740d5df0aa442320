"""What a run uses of its splits, by its config."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_configs import resolved
from xmae_jax.config import ConfigError
from xmae_jax.data.plan import Plan
from xmae_jax.tasks.evaluators import EVALUATORS, Seen
from xmae_jax.tasks.split import open_split

FINDINGS = ("Nodule", "Pneumothorax")


def opened(shards, split="train", *, seed=0, findings=FINDINGS, **changes):
    config = resolved("finetune_full", "smoke")
    data = dataclasses.replace(config.data, path=str(shards), **changes)
    return open_split(dataclasses.replace(config, data=data, seed=seed), split, findings=findings)


def test_everything_is_what_it_was(shards):
    split = opened(shards)
    assert split.chosen is None and split.describe() == ""
    assert split.sizes == (len(split.records[0]),) and split.digests == (split.records[0].digest,)
    assert split.films == split.entries[0]
    assert [e.id for e in split.films] == [r["id"] for r in split.records[0]]


def test_subsets_have_digests_of_their_own(shards):
    whole = opened(shards)
    digests = {whole.digests}
    for changes in (dict(label_fraction=0.5), dict(label_fraction=0.1), dict(shots=1),
                    dict(balance=0.9), dict(seed=1, label_fraction=0.5)):  # fmt: skip
        split = opened(shards, **changes)
        assert split.digests == opened(shards, **changes).digests
        digests.add(split.digests)
        text = split.describe()
        assert text.startswith(f"training on {len(split.films)} of {len(whole.films)} films")
        plan = Plan(0, split.sizes, (4,), split.digests, (), split.chosen)
        used = {whole.films[i].id for step in range(50) for i in plan.ids(step)[:, 1]}
        assert used == {e.id for e in split.films}
        every = split.every(batch_size=3, limit=1000)
        seen = np.concatenate([every(step) for step in range(every.steps)])
        assert sorted(seen[seen[:, 0] == 0, 1]) == sorted({*split.chosen[0].tolist()})
        held_out = {k: v for k, v in changes.items() if k != "seed"}
        assert opened(shards, "val", **held_out).chosen is None
    assert len(digests) == 6


def test_what_cannot_be(shards):
    for option in (dict(shots=2), dict(balance=0.1)):
        with pytest.raises(ConfigError, match=f"config.data.{[*option][0]}: the objective has no"):
            opened(shards, findings=(), **option)
    with pytest.raises(
        ConfigError, match="config.data.leave_out_source: 'nih' is none of them; .* phantom-v2"
    ):
        opened(shards, leave_out_source="nih")
    with pytest.raises(ConfigError, match="config.data.leave_out_source"):  # nothing is left
        opened(shards, leave_out_source="phantom-v2")
    assert opened(shards, "test", leave_out_source="phantom-v2").films
    with pytest.raises(ConfigError, match="config.data.eval_split: split 'vla' .* None trains"):
        opened(shards, "vla", eval_split="vla")


@pytest.mark.parametrize("name", ["val", "test"])
def test_films_that_training_scores_go_by_the_name_of_their_split(shards, name):
    """So that no threshold is chosen on test, which a file of predictions would not tell of."""
    objective = SimpleNamespace(findings=FINDINGS, counts=((3.0, 4.0), (9.0, 9.0), (0.0, 0.0)))
    config, held_out = resolved("finetune_full", "smoke"), opened(shards, name, eval_split=name)
    _, build = EVALUATORS["classify"]
    evaluator = build(Seen(config, objective, held_out, None))
    draw = np.random.default_rng(0)
    rows = [
        {"id": np.array([0, i]), "logits": draw.normal(size=2), "labels": np.array([i % 2, 1.0])}
        for i in range(3)
    ]
    metrics, text = evaluator.evaluate({"train": rows.__iter__, "val": rows.__iter__})
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == [name] * 3
    assert metrics["split"] == name
    assert metrics["chosen_on"]["films"] == (3 if name == "val" else 0)
