"""Transformer parts: pre-norm block, attention, MLP, and a scanned stack of blocks.

The block of Dosovitskiy et al., An Image Is Worth 16x16 Words (arXiv 2010.11929, section 3.1):
exact GELU, LayerNorm epsilon 1e-6. Linear kernels are Xavier-uniform and biases zero, as in He et
al. (arXiv 2111.06377); the three matrices of qkv count as one for that.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xmae_jax.attention import attend

xavier = nnx.initializers.xavier_uniform()


def layer_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Make a LayerNorm whose statistics are float32 in two passes."""
    return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)


def linear(
    inputs: int, outputs: int | tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """Make a linear map of the last axis with a Xavier-uniform kernel and a zero bias."""
    return nnx.LinearGeneral(inputs, outputs, kernel_init=xavier, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention; the kernel of qkv is [d, 3, heads, d / heads]."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.qkv = linear(width, (3, heads, width // heads), dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        qkv = self.qkv(x)  # b n 3 heads hd
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # b n heads hd
        return self.out(y.reshape(x.shape))  # b n d


class Mlp(nnx.Module):
    """Two linear maps with an exact GELU between them; the hidden width is 4 d."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.up = linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.down = linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and around a residual."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make `depth` modules as one, whose every parameter has a leading axis l."""
    split = nnx.split_rngs(splits=depth)
    return split(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)


def scan(blocks: nnx.Module, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Run a stack of blocks one after the other; compiled once, whatever the depth."""
    graph, stacked = nnx.split(blocks)

    def body(x, params):
        return nnx.merge(graph, params)(x), None

    return jax.lax.scan(body, x, stacked)[0]
