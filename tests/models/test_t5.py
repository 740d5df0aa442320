"""The T5 decoder: steps against whole texts, what it may see, masks, dropout, bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xmae_jax.models.layers import Compute
from xmae_jax.models.t5 import Memory, T5Config, T5Decoder, bucket
from xmae_jax.models.t5_steps import Steps

SIZES = dict(vocab=50, width=24, depth=2, heads=3, head_width=8, hidden=40)


def decoder(*, gated=True, tied=False, dtype="float32", remat="none", **changes) -> T5Decoder:
    config = T5Config(**(SIZES | changes), gated=gated, tied=tied)
    compute = Compute(jnp.dtype(dtype), "plain", remat)
    return T5Decoder(config, compute=compute, rngs=nnx.Rngs(0))


def drawn(rows: int, length: int, m: int = 7) -> tuple:
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, 50, (rows, length)), jnp.int32)
    return tokens, jnp.asarray(draw.normal(size=(rows, m, 24)), jnp.float32)


@pytest.mark.parametrize(("gated", "tied"), [(True, False), (False, True)])
def test_steps_give_what_whole_texts_give(gated, tied):
    model = decoder(gated=gated, tied=tied)
    tokens, context = drawn(4, 12)
    valid = jnp.asarray(np.arange(7) < np.array([7, 4, 1, 0])[:, None])
    memory = model.memory(context)
    want = model(tokens, memory, memory_valid=valid)
    steps = Steps(model, memory, memory_valid=valid)

    @jax.jit
    def step(tokens, cache, position):
        seen = jnp.broadcast_to(jnp.arange(12) <= position, (4, 1, 12))
        return steps.step(tokens, cache, position=position, seen=seen)

    cache = steps.cache(12, 1)
    for i in range(12):
        logits, cache, attention = step(tokens[:, i : i + 1], cache, jnp.asarray(i))
        np.testing.assert_allclose(logits[:, 0], want[:, i], atol=1e-5)
        np.testing.assert_allclose(attention[:3].sum(axis=2), 1, atol=1e-5)
        assert not attention[~valid[:, None]].any()


def test_a_prefill_is_the_same_as_steps():
    model = decoder()
    tokens, context = drawn(3, 6)
    memory = model.memory(context)
    want = model(tokens, memory)
    padded = jnp.pad(tokens[:, :5], ((0, 0), (3, 0)))
    valid = jnp.broadcast_to(jnp.arange(8) >= 3, (3, 8))
    last, kept, attention = model.prefill(padded, memory, valid=valid)
    np.testing.assert_allclose(model.logits(last), want[:, 4], atol=1e-5)
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)
    steps = Steps(model, memory)
    cache = steps.cache(10, 2, kept=kept)
    place, beam = np.arange(20) // 2, np.arange(20) % 2
    seen = np.stack([(place >= 3) & ((place < 8) & (beam == 0) | (place == 8) & (beam == c))
                     for c in (0, 1)])  # fmt: skip
    seen = jnp.broadcast_to(jnp.asarray(seen), (3, 2, 20))
    both = jnp.repeat(tokens[:, 5:], 2, axis=1)
    logits, *_ = steps.step(both, cache, position=jnp.asarray(8), seen=seen)
    np.testing.assert_allclose(logits[:, 0], want[:, 5], atol=1e-5)
    np.testing.assert_allclose(logits[:, 1], want[:, 5], atol=1e-5)


def test_a_token_sees_no_later_one_and_no_memory_that_is_not_there():
    model = decoder()
    tokens, context = drawn(2, 8)
    valid = jnp.asarray([[True] * 4 + [False] * 3, [False] * 7])
    logits = model(tokens, model.memory(context), memory_valid=valid)
    other = model(
        tokens.at[:, 5:].set(3), model.memory(context.at[:, 4:].add(9)), memory_valid=valid
    )
    np.testing.assert_array_equal(logits[0, :5], other[0, :5])
    assert np.abs(logits[0, 5:] - other[0, 5:]).max() > 0.1
    alone = model(tokens, model.memory(context * 0), memory_valid=valid)
    np.testing.assert_array_equal(logits[1], alone[1])
    assert np.isfinite(logits).all()


def test_a_row_without_memory_has_a_finite_gradient():
    model = decoder()
    tokens, context = drawn(2, 8)
    valid = jnp.zeros((2, 7), bool)
    graph, params = nnx.split(model)

    def loss(params):
        merged = nnx.merge(graph, params)
        return merged(tokens, merged.memory(context), memory_valid=valid).sum()

    grads = jax.tree.leaves(jax.grad(loss)(params))
    assert all(np.isfinite(x).all() for x in grads)


def test_buckets_are_those_of_t5():
    config = T5Config(**SIZES, gated=True, tied=False)
    told = bucket(np.array([-3, 0, 1, 15, 16, 18, 19, 20, 21, 32, 64, 113, 127, 128, 1000]), config)
    assert told.tolist() == [0, 0, 1, 15, 16, 16, 17, 17, 18, 21, 26, 31, 31, 31, 31]


def test_dropout_is_by_row():
    model = decoder(dropout=0.3)
    tokens, context = drawn(3, 6)
    keys = jax.random.split(jax.random.key(1), 3)
    logits = model(tokens, model.memory(context), keys=keys)
    alone = model(tokens[1:2], model.memory(context[1:2]), keys=keys[1:2])
    np.testing.assert_allclose(logits[1], alone[0], atol=1e-5)
    assert np.abs(logits - model(tokens, model.memory(context))).max() > 0.1


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(remat):
    tokens, context = drawn(2, 5)

    def gradient(remat):
        graph, params = nnx.split(decoder(remat=remat, dropout=0.1))
        keys = jax.random.split(jax.random.key(1), 2)

        def loss(params):
            model = nnx.merge(graph, params)
            return (model(tokens, model.memory(context), keys=keys) ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for one, other in zip(gradient("none"), gradient(remat), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close():
    tokens, context = drawn(2, 8)
    logits = []
    for dtype in ("float32", "bfloat16"):
        model = decoder(dtype=dtype)
        memory = model.memory(context)
        assert isinstance(memory, Memory) and memory.k.dtype == jnp.dtype(dtype)
        logits.append(model(tokens, memory))
    assert logits[1].dtype == jnp.float32
    np.testing.assert_allclose(*logits, atol=0.15)


def test_settings_that_cannot_be():
    for changes in (dict(depth=0), dict(dropout=1.0), dict(max_distance=16), dict(norm_eps=0.0)):
        with pytest.raises(ValueError):
            T5Config(**(SIZES | changes), gated=True, tied=False)
