"""Positions, stems and the stack of blocks against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from xmae_jax.models.layers import Block, Compute, gelu, scan, stack
from xmae_jax.models.position import sincos_2d
from xmae_jax.models.vit import ConvStem

COMPUTE = Compute(jnp.dtype("float32"), "plain", "none")


def test_positions_are_the_published_table():
    # Written from the formula, one number at a time: column first, then row; sine, then cosine.
    table, width = sincos_2d((3, 5), 16, base_grid=5), 16
    quarter = width // 4
    for row in range(3):
        for column in range(5):
            for i in range(quarter):
                omega = 10000 ** (-i / quarter)
                x, y = column * omega, row * (5 / 3) * omega
                got = table[row * 5 + column]
                want = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
                np.testing.assert_allclose(got[i::quarter], want, atol=1e-6)


def test_positions_span_the_same_range_at_every_size():
    small, large = sincos_2d((14, 14), 32, base_grid=14), sincos_2d((28, 28), 32, base_grid=14)
    np.testing.assert_allclose(
        large.reshape(28, 28, 32)[::2, ::2].reshape(-1, 32), small, atol=1e-6
    )
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_2d((2, 2), 6, base_grid=2)


def test_blocks_against_numpy():
    blocks = stack(
        lambda r: Block(8, 2, compute=COMPUTE, rngs=r),
        3,
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape),
        nnx.to_pure_dict(nnx.state(blocks, nnx.Param)),
    )
    nnx.update(blocks, params)
    x = np.random.default_rng(0).normal(size=(2, 5, 8))

    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    want = x
    for layer in range(3):
        p = jax.tree.map(lambda a, i=layer: np.asarray(a[i], np.float64), params)
        qkv = np.einsum("bnd,dshe->sbhne", norm(want, p["norm1"]), p["attention"]["qkv"]["kernel"])
        qkv += p["attention"]["qkv"]["bias"][:, None, :, None]
        scores = qkv[0] @ qkv[1].swapaxes(-1, -2) / 2.0
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed = (weights @ qkv[2]).transpose(0, 2, 1, 3).reshape(2, 5, 8)
        out = p["attention"]["out"]
        want = want + mixed @ out["kernel"] + out["bias"]
        up = norm(want, p["norm2"]) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
        want = want + up @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    np.testing.assert_allclose(
        scan(blocks, jnp.asarray(x, jnp.float32), remat="none")[-1], want, atol=1e-5
    )


def test_stem_is_three_convolutions():
    stem = ConvStem(8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(params=jax.random.key(0)))
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 1))
    got = stem(image.reshape(1, 1, 64 * 64))[0, 0]

    def conv(x, layer, side):
        kernel = layer.kernel[...].reshape(side, side, x.shape[-1], -1)
        y = jax.lax.conv_general_dilated(
            x, kernel, (side, side), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + layer.bias[...].reshape(1, 1, 1, -1)

    x = jax.nn.relu(conv(image, stem.conv16, 16))
    x = conv(jax.nn.relu(conv(x, stem.conv4, 4)), stem.conv1, 1)
    np.testing.assert_allclose(got, x[0, 0, 0], atol=1e-5)


def test_initial_values():
    blocks = stack(
        lambda r: Block(64, 4, compute=COMPUTE, rngs=r),
        2,
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    params = nnx.to_pure_dict(nnx.state(blocks, nnx.Param))
    kernel = np.asarray(params["attention"]["qkv"]["kernel"])
    assert kernel.shape == (2, 64, 3, 4, 16)
    limit = np.sqrt(6 / (64 + 3 * 64))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert (kernel[0] != kernel[1]).all()
    assert (params["attention"]["qkv"]["bias"] == 0).all()
    assert (params["norm1"]["scale"] == 1).all()


def test_gelu_and_its_gradient():
    x = np.linspace(-8, 8, 4001)
    below = 0.5 * (1 + erf(x / np.sqrt(2)))
    slope = below + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    f32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(f32), x * below, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(f32), slope, atol=1e-6)
    narrow = gelu(f32.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    want = np.asarray(f32.astype(jnp.bfloat16), np.float64)
    want = want * 0.5 * (1 + erf(want / np.sqrt(2)))
    np.testing.assert_allclose(narrow.astype(jnp.float32), want, rtol=2**-8, atol=1e-6)
