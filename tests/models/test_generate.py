"""Generation: what a text is, that rows do not know each other, lengths, meshes, bfloat16."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmae_jax import sharding
from xmae_jax.models import generate as module
from xmae_jax.models.generate import GenerateConfig, Generated, generate
from xmae_jax.models.layers import Compute
from xmae_jax.models.t5 import T5Config, T5Decoder

ROWS, M, WIDTH, VOCAB = 8, 6, 24, 20
BEAM = GenerateConfig(beams=3, max_new=14, min_new=3, length_penalty=0.5, no_repeat_ngram=2)


def decoder(*, vocab: int = VOCAB, dtype: str = "float32") -> T5Decoder:
    """Make one whose texts differ and end: what is read counts for more than at first."""
    config = T5Config(
        vocab=vocab, width=WIDTH, depth=2, heads=2, head_width=12, hidden=32, gated=True, tied=False
    )
    compute = Compute(jnp.dtype(dtype), "plain", "none")
    model = T5Decoder(config, compute=compute, rngs=nnx.Rngs(3))
    model.embedding[...] *= 0.3
    model.blocks.cross.q.kernel[...] *= 10
    model.out.kernel[...] *= 3
    return model


def states(rows: int = ROWS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, M, WIDTH)), jnp.float32)


VALID = np.arange(M) < np.array([6, 5, 4, 3, 2, 1, 6, 0])[:, None]
PREFIX = np.random.default_rng(1).integers(2, VOCAB, (ROWS, 5))
GIVEN = np.array([5, 0, 1, 2, 3, 4, 5, 2])


def beam(context, valid=VALID, prefix=PREFIX, given=GIVEN, config=BEAM) -> Generated:
    """Write with all that there is, so that one program serves many tests."""
    model = decoder()
    memory = jax.jit(model.memory)(context)
    found = generate(
        model,
        memory,
        config=config,
        memory_valid=jnp.asarray(valid),
        prefix=jnp.asarray(prefix, jnp.int32),
        prefix_length=jnp.asarray(given, jnp.int32),
        attention=True,
    )
    return jax.tree.map(np.asarray, found)


def test_greedy_search_takes_the_most_likely_token():
    model = decoder()
    memory = jax.jit(model.memory)(states())
    # A penalty by which any longer text would win, if it were looked at.
    config = GenerateConfig(beams=1, max_new=12, length_penalty=3.0)
    found = generate(model, memory, config=config)
    assert found.attention is None
    run = jax.jit(lambda tokens: model(tokens, memory).argmax(axis=-1))
    texts = np.zeros((ROWS, 13), np.int32)
    for i in range(12):
        texts[:, i + 1] = np.asarray(run(jnp.asarray(texts)))[:, i]
    tokens, lengths = np.asarray(found.tokens), np.asarray(found.length)
    for row, length, text in zip(tokens, lengths, texts[:, 1:].tolist(), strict=True):
        assert length == (text.index(1) + 1 if 1 in text else 12)
        assert row.tolist() == text[:length] + [0] * (12 - length)
    assert len(set(lengths.tolist())) > 2


def test_enough_beams_find_the_best_of_all_texts():
    v, rows, model = 4, 3, decoder(vocab=4)
    memory = jax.jit(model.memory)(states(rows))
    config = GenerateConfig(beams=48, max_new=3, length_penalty=0.0)
    found = generate(model, memory, config=config)
    every = np.array(list(itertools.product(range(v), repeat=3)))
    inputs = np.pad(every[:, :2], ((0, 0), (1, 0)))

    @jax.jit
    def score(i):
        one = jax.tree.map(lambda x: jnp.repeat(x[:, i][:, None], len(every), axis=1), memory)
        return jax.nn.log_softmax(model(jnp.asarray(inputs), one))

    for i in range(rows):
        each = np.take_along_axis(np.asarray(score(i)), every[..., None], axis=2)[..., 0]
        # A text ends with its first end.
        real = np.cumsum(np.pad(every == 1, ((0, 0), (1, 0)))[:, :-1], axis=1) == 0
        totals = (each * real).sum(axis=1)
        best = every[totals.argmax()] * real[totals.argmax()]
        np.testing.assert_allclose(found.score[i], totals.max(), rtol=1e-5)
        assert found.tokens[i].tolist() == best.tolist()


def test_probabilities_and_maps_are_those_of_the_text_read_as_a_whole():
    model, found = decoder(), beam(states())
    texts = np.zeros((ROWS, 20), np.int32)
    for i, given in enumerate(GIVEN):
        texts[i, 1 : 1 + given] = PREFIX[i, :given]
        texts[i, 1 + given : 15 + given] = found.tokens[i]

    @jax.jit
    def read(tokens, context):
        memory = model.memory(context)
        return jax.nn.log_softmax(model(tokens, memory, memory_valid=jnp.asarray(VALID)))

    whole = np.asarray(read(jnp.asarray(texts), states()))
    for i, (given, length) in enumerate(zip(GIVEN, found.length, strict=True)):
        want = whole[i, given + np.arange(length), found.tokens[i, :length]]
        np.testing.assert_allclose(found.log_prob[i, :length], want, atol=1e-4)
        np.testing.assert_allclose(found.score[i], want.sum() / length**0.5, rtol=1e-4)
        assert not found.log_prob[i, length:].any() and not found.tokens[i, length:].any()

    prefill = jax.jit(
        lambda tokens, valid, memory: model.prefill(
            tokens, memory, valid=valid, memory_valid=jnp.asarray(VALID)
        )[2]
    )
    memory = jax.jit(model.memory)(states())
    for j in range(found.length.max()):
        pasts = [texts[i, : 1 + given + j] for i, given in enumerate(GIVEN)]
        tokens = jnp.asarray(np.stack([np.pad(past, (20 - len(past), 0)) for past in pasts]))
        valid = jnp.asarray(np.arange(20) >= 20 - np.array([[len(past)] for past in pasts]))
        want, real = np.asarray(prefill(tokens, valid, memory)), j < found.length
        np.testing.assert_allclose(found.attention[real, j], want[real], atol=1e-5)


def test_texts_obey():
    found = beam(states())
    assert found.length.min() >= BEAM.min_new and len(set(found.length.tolist())) > 2
    for i, (given, length) in enumerate(zip(GIVEN, found.length, strict=True)):
        text = [0, *PREFIX[i, :given].tolist(), *found.tokens[i, :length].tolist()]
        new = [pair for pair in itertools.pairwise(text)][given:]
        assert len(set(new)) == len(new)
        assert not set(new) & set(list(itertools.pairwise(text))[:given])
        assert 1 not in found.tokens[i, : length - 1].tolist()
        assert found.tokens[i, length - 1] == 1 or length == BEAM.max_new
    total = found.attention.sum(axis=2)
    real = (np.arange(BEAM.max_new) < found.length[:, None]) & VALID.any(axis=1)[:, None]
    np.testing.assert_allclose(total, real, atol=1e-5)
    assert not found.attention[~np.broadcast_to(VALID[:, None], found.attention.shape)].any()


def same(one: Generated, other: Generated, rows=slice(None)) -> None:
    np.testing.assert_array_equal(one.tokens, other.tokens[rows])
    np.testing.assert_array_equal(one.length, other.length[rows])
    for name in ("score", "log_prob", "attention"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name)[rows], atol=1e-5)


def test_a_row_does_not_depend_on_others_nor_on_padding():
    found, order = beam(states()), np.array([3, 1, 7, 0, 2, 6, 5, 4])
    turned = beam(states()[order], VALID[order], PREFIX[order], GIVEN[order])
    same(turned, found, order)
    # Others' films, and what padding holds.
    other = states().at[1:].add(1.0)
    first = beam(other)
    same(*(jax.tree.map(lambda x: x[:1], one) for one in (first, found)))
    noise = jnp.where(VALID[..., None], states(), 5.0)
    prefix = np.where(np.arange(5) < GIVEN[:, None], PREFIX, 9)
    same(beam(noise, prefix=prefix), found)


def test_lengths_of_a_bucket_share_a_program():
    beam(states())
    before = module._generate._cache_size()
    for max_new, wide in ((14, 7), (9, 5), (32, 8), (3, 1)):
        config = GenerateConfig(**(vars(BEAM) | dict(max_new=max_new)))
        prefix = np.resize(PREFIX, (ROWS, wide))
        found = beam(states(), prefix=prefix, given=np.minimum(GIVEN, wide), config=config)
        assert found.tokens.shape == (ROWS, max_new) and found.length.max() <= max_new
    assert module._generate._cache_size() == before
    same(beam(states(), prefix=np.pad(PREFIX, ((0, 0), (0, 3)))), beam(states()))


def test_a_mesh_changes_nothing():
    model, config = decoder(), GenerateConfig(beams=2, max_new=6)
    graph, params = nnx.split(model)

    def write(params, context):
        merged = nnx.merge(graph, params)
        return generate(merged, merged.memory(context), config=config)

    want = jax.jit(write)(params, states())
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        context = jax.device_put(states(), sharding.batch_sharding(mesh))
        got = jax.jit(write)(jax.device_put(params, sharding.replicated(mesh)), context)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_prob, want.log_prob, atol=1e-5)


def test_bfloat16_writes_likely_texts():
    config, texts = GenerateConfig(beams=2, max_new=6), []
    for dtype in ("float32", "bfloat16"):
        model = decoder(dtype=dtype)
        texts.append(generate(model, jax.jit(model.memory)(states()), config=config))
    np.testing.assert_allclose(*(text.score for text in texts), atol=0.1)
    assert texts[1].log_prob.dtype == jnp.float32


def test_settings_that_cannot_be():
    for changes in (dict(beams=0), dict(max_new=0), dict(min_new=9), dict(no_repeat_ngram=-1)):
        with pytest.raises(ValueError):
            GenerateConfig(**(dict(beams=1, max_new=8) | changes))
    model = decoder()
    with pytest.raises(ValueError, match="prefix_length"):
        generate(
            model,
            jax.jit(model.memory)(states()),
            config=BEAM,
            prefix=jnp.zeros((ROWS, 2), jnp.int32),
        )
