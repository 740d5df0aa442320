"""Hugging Face's T5 against our decoder: hidden states, logits, and texts token for token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmae_jax.digest import nested
from xmae_jax.models.convert_t5 import read_t5
from xmae_jax.models.generate import GenerateConfig, generate
from xmae_jax.models.layers import Compute
from xmae_jax.models.t5 import T5Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS, NEW = 50, 20


def theirs(*, v1_1: bool):
    """Make a model; of v1.1 its logits are far enough apart that texts differ and end."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=6,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu" if v1_1 else "relu",
        tie_word_embeddings=not v1_1,
        decoder_start_token_id=0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name or "relative" in name:
                parameter += 0.3 * torch.randn(parameter.shape)
        if v1_1:
            model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(40, 32))
    return model.eval()


def spread(model):
    """Let what is read count for more: tied, a token's own row wins else, and no text ends."""
    with torch.no_grad():
        model.shared.weight *= 0.3
        model.shared.weight[1] *= 3
        model.decoder.final_layer_norm.weight *= 10
        for name, parameter in model.decoder.named_parameters():
            parameter *= 6 if "ttention.q" in name else 1
            parameter *= 10 if "EncDecAttention.o" in name or "wo" in name else 1


def ours(folder, *, dtype: str) -> T5Decoder:
    """Read a folder into our decoder."""
    foreign = read_t5(folder)
    compute = Compute(jnp.dtype(dtype), "plain", "none")

    def make() -> T5Decoder:
        return T5Decoder(foreign.config, compute=compute, rngs=nnx.Rngs(0))

    graph, state = nnx.split(nnx.eval_shape(make))
    tree = jax.tree.map(lambda x: jnp.asarray(x, dtype), nested(foreign.params))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    return nnx.merge(graph, tree)


def states() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 9, 32))


def encoded(array: np.ndarray, dtype):
    return transformers.modeling_outputs.BaseModelOutput(torch.tensor(array, dtype=dtype))


@pytest.mark.parametrize("v1_1", [True, False])
def test_hidden_states_and_logits(tmp_path, v1_1):
    model = theirs(v1_1=v1_1)
    model.save_pretrained(tmp_path)
    decoder = ours(tmp_path, dtype="float32")
    valid = np.arange(9) < np.random.default_rng(2).integers(1, 10, (ROWS, 1))
    tokens = np.random.default_rng(1).integers(0, 40, (ROWS, 30))
    with torch.no_grad():
        want = model(
            encoder_outputs=encoded(states(), torch.float32),
            attention_mask=torch.tensor(valid),
            decoder_input_ids=torch.tensor(tokens),
            output_hidden_states=True,
        )

    @jax.jit
    def run(tokens, context, valid):
        memory = decoder.memory(context)
        hidden = decoder.hidden(tokens, memory, memory_valid=valid)
        return hidden, decoder(tokens, memory, memory_valid=valid)

    hidden, logits = run(*map(jnp.asarray, (tokens, states().astype(np.float32), valid)))
    np.testing.assert_allclose(hidden, want.decoder_hidden_states[-1], atol=1e-4)
    np.testing.assert_allclose(logits, want.logits, atol=1e-4)
    assert np.std(logits) > 1


@functools.cache
def pair(folder, v1_1: bool):
    """Return both models in float64, and the memory."""
    model = theirs(v1_1=v1_1)
    if not v1_1:
        spread(model)
    model.save_pretrained(folder)
    decoder = ours(folder, dtype="float64")
    return model.double(), decoder, jax.jit(decoder.memory)(jnp.asarray(states()))


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("v1_1", "beams", "settings"),
    [
        (True, 1, {}),
        (True, 1, dict(no_repeat_ngram=3, min_new=5, forced=3)),
        (True, 4, dict(length_penalty=0.0)),
        (True, 4, dict(length_penalty=1.0, forced=3)),
        (True, 4, dict(length_penalty=0.0, no_repeat_ngram=3)),
        (True, 4, dict(length_penalty=0.8, no_repeat_ngram=3, min_new=5, forced=3)),
        (False, 1, {}),
        (False, 4, dict(length_penalty=0.0)),
        (False, 4, dict(length_penalty=0.8, no_repeat_ngram=3)),
    ],
)
def test_texts_are_the_same_in_float64(tmp_path_factory, wide, v1_1, beams, settings):
    settings = dict(settings)
    forced = settings.pop("forced", 0)
    model, decoder, memory = pair(tmp_path_factory.getbasetemp() / f"t5_{v1_1}", v1_1)
    config = GenerateConfig(beams=beams, max_new=NEW, **settings)
    prefix = np.random.default_rng(3).integers(2, 40, (ROWS, forced))
    penalty = dict(length_penalty=config.length_penalty) if beams > 1 else {}
    want = model.generate(
        encoder_outputs=encoded(states(), torch.float64),
        decoder_input_ids=torch.tensor(np.pad(prefix, ((0, 0), (1, 0)))),
        do_sample=False,
        num_beams=beams,
        max_new_tokens=NEW,
        min_new_tokens=config.min_new or None,
        no_repeat_ngram_size=config.no_repeat_ngram,
        return_dict_in_generate=True,
        output_scores=True,
        **penalty,
    )
    got = generate(
        decoder,
        memory,
        config=config,
        prefix=jnp.asarray(prefix, jnp.int32),
        prefix_length=jnp.full(ROWS, forced, jnp.int32),
    )
    got, ends = jax.tree.map(np.asarray, got), set()
    for row, length, text in zip(got.tokens, got.length, want.sequences.numpy(), strict=True):
        text = text[1 + forced :].tolist()
        if 1 in text:
            text = text[: text.index(1) + 1]
        assert row[:length].tolist() == text
        ends.add(len(text))
    assert len(ends) > 3
    if beams > 1:
        np.testing.assert_allclose(got.score, want.sequences_scores, rtol=1e-5)
    for row, length, log_prob, score in zip(
        got.tokens, got.length, got.log_prob, got.score, strict=True
    ):
        assert not row[length:].any() and not log_prob[length:].any()
        total = float(log_prob.sum()) / float(length) ** config.length_penalty
        np.testing.assert_allclose(score, total, rtol=1e-4)
