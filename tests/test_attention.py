"""Every backend gives what plain attention gives, gradients too, at any length."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import described_batch
from xmae_jax import attention, rng, sharding
from xmae_jax.config import objective_of, resolve
from xmae_jax.objectives import OBJECTIVES


def with_gradients(fn, q, k, v):
    """Return what attention gives, and the gradient of a sum weighted at random."""
    weights = jax.random.normal(jax.random.key(9), q.shape)

    def loss(q, k, v):
        out = fn(q, k, v)
        return jnp.sum(out * weights), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def by_hand(q, k, v):
    """Plain attention as it is written in a textbook, differentiated by JAX."""
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1), v)


def inputs(n, m, *, heads=2, width=32, scale=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, n, heads, width), (2, m, heads, width), (2, m, heads, width)]
    return [scale * jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("backend", ["plain", "chunked"])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (300, 1100), (513, 200)])
def test_every_backend_is_the_textbook_s(backend, n, m):
    q, k, v = inputs(n, m)
    want = with_gradients(by_hand, q, k, v)
    got = with_gradients(partial(attention.attend, backend=backend), q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(130, 130), (200, 70)])
def test_splash_is_plain(n, m):
    """Interpreted; that it compiles for a TPU is seen by tests/tasks/test_plan.py."""
    q, k, v = inputs(n, m)
    want = with_gradients(by_hand, q, k, v)
    got = with_gradients(partial(attention._splash, interpret=True), q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fn", [attention._plain, attention._chunked, partial(attention._splash, interpret=True)]
)
def test_bfloat16_costs_what_its_rounding_does(fn):
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(200, 150, width=128, scale=2.0))
    want = with_gradients(by_hand, *(x.astype(jnp.float32) for x in (q, k, v)))
    for a, b in zip(with_gradients(fn, q, k, v), want, strict=True):
        error = jnp.sqrt(jnp.mean((a.astype(jnp.float32) - b) ** 2) / jnp.mean(b**2))
        assert a.dtype == jnp.bfloat16 and error < 2**-7  # two units in the last place


def test_splash_on_a_mesh_of_three_axes():
    """Several blocks along both axes; rows and heads on different devices."""
    q, k, v = (jnp.concatenate([x, x[::-1]]) for x in inputs(1100, 1300, width=8))
    want = with_gradients(by_hand, q, k, v)
    names = ("rows", None, "heads", None)
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        splash = partial(attention._splash, interpret=True)
        got = with_gradients(sharding.per_device(splash, (names,) * 3, names), q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_splash_s_blocks_are_large_and_waste_little():
    for length in (70, 737, 1601, 5664, 6401):
        block = attention._block(length)
        padded = -(-length // block) * block
        assert block % 128 == 0 and (block >= 512 or length <= 512)
        assert padded <= max(1.13 * length, 256), length


def with_a_loud_padding(n, m):
    """Make inputs whose scores are negative, so that a key of zeros would win."""
    q, k, v = inputs(n, m)
    return abs(q), -abs(k), v


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(196, 196), (197, 197), (1600, 737), (1601, 6400)])
def test_cudnn_is_plain(n, m):
    if jax.default_backend() != "gpu":
        pytest.skip("no NVIDIA card: XMAE_TEST_PLATFORM=cuda where there is one")
    q, k, v = (x.astype(jnp.bfloat16) for x in with_a_loud_padding(n, m))
    want = with_gradients(by_hand, *(x.astype(jnp.float32) for x in (q, k, v)))
    got = with_gradients(partial(attention.attend, backend="cudnn"), q, k, v)
    for a, b in zip(got, want, strict=True):
        error = jnp.sqrt(jnp.mean((a.astype(jnp.float32) - b) ** 2) / jnp.mean(b**2))
        assert error < 2**-6


@pytest.mark.parametrize(("n", "m"), [(61, 34), (34, 61), (61, 35), (34, 34)])
def test_cudnn_gets_even_lengths(n, m, monkeypatch):
    """JAX refuses its gradient at odd ones."""
    anywhere = jax.nn.dot_product_attention

    def even(*given, implementation, **lengths):
        assert implementation == "cudnn" and all(x.shape[1] % 2 == 0 for x in given)
        return anywhere(*given, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", even)
    q, k, v = with_a_loud_padding(n, m)
    want = with_gradients(by_hand, q, k, v)
    got = with_gradients(attention._cudnn, q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_large_score_overflows_nothing():
    q, k, v = inputs(300, 1100, scale=40.0)
    out = attention._chunked(q, k, v)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, by_hand(q, k, v), atol=1e-3 * float(jnp.abs(v).max()))


def test_who_is_chosen(monkeypatch):
    def chosen(platform, length, dtype=jnp.bfloat16):
        monkeypatch.setattr(sharding, "platform", lambda: platform)
        return attention.choose(length, jnp.dtype(dtype))

    assert chosen("cpu", 6401) == "chunked" and chosen("cpu", 197) == "plain"
    assert chosen("tpu", 6401) == "splash" and chosen("tpu", 197) == "plain"
    assert chosen("gpu", 6401) == "cudnn" and chosen("gpu", 6401, jnp.float32) == "chunked"


@pytest.mark.parametrize(
    ("backend", "platform", "dtype", "told"),
    [
        ("splash", "cpu", jnp.bfloat16, "runs on TPUs, and this is cpu"),
        ("cudnn", "tpu", jnp.bfloat16, "runs on NVIDIA's cards"),
        ("cudnn", "gpu", jnp.float32, "has no float32"),
    ],
)
def test_what_a_platform_does_not_have_is_refused(backend, platform, dtype, told):
    with pytest.raises(ValueError, match=told):
        attention.check(backend, platform, jnp.dtype(dtype))
    for good in ("auto", "plain", "chunked"):
        attention.check(good, platform, jnp.dtype(dtype))


def test_the_platform_is_that_of_the_mesh():
    assert sharding.platform() == "cpu"
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh(
        (4, 1, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, abstract_device=tpu
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.platform() == "tpu"


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_step_at_1280_holds_no_square_of_its_length(kind):
    """Read every type in the lowered gradient: none has two axes as long as the sequence."""
    from configs import pretrain_1280

    config = pretrain_1280.get_config()
    config.objective.decoder.kind = kind
    mae = objective_of(resolve(config), OBJECTIVES)
    params = jax.eval_shape(mae.init, rng.key(0, "init"))

    def gradient(params, batch):
        key, step = rng.key(0, "train"), jnp.zeros((), jnp.int32)
        batch = mae.prepare(batch, key, step).batch
        return jax.grad(lambda p: mae.loss(p, {}, {}, batch, key, step).totals["reconstruction"])(
            params
        )

    text = jax.jit(gradient).lower(params, described_batch(mae, 2)).as_text()
    assert largest_square(text) < 6400 - 736  # the fewest queries that a decoder here has


def largest_square(text):
    """Return the largest second-longest axis of any array in StableHLO."""
    import re

    shapes = {m for m in re.findall(r"tensor<((?:\d+x)+)", text)}
    axes = [sorted(map(int, shape.rstrip("x").split("x"))) for shape in shapes]
    return max(a[-2] for a in axes if len(a) > 1)
