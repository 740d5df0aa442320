"""Transformer parts: pre-norm block, attention, MLP, and a scanned stack of blocks.

The block of Dosovitskiy et al., An Image Is Worth 16x16 Words (arXiv 2010.11929, section 3.1), with
exact GELU; on request that of Oquab et al., DINOv2 (arXiv 2304.07193): layer scale and SwiGLU.
Linear kernels are Xavier-uniform and biases zero, as in He et al. (arXiv 2111.06377); the three
matrices of qkv count as one for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from xmae_jax.attention import SAVED, Backend, attend, read_back
from xmae_jax.sharding import constrain

Remat = Literal["none", "dots", "full"]  # from the least computed twice to the most
MlpKind = Literal["gelu", "swiglu"]
xavier = nnx.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed; none of it changes what is computed but for rounding."""

    dtype: jnp.dtype
    """Of matrix products; parameters, norms and softmax are float32."""
    attention: Backend
    remat: Remat
    """What of a block is kept for the backward pass: all ("none"), matrix products and what
    attention gave ("dots"), or its input alone ("full"); the rest is computed again."""


@dataclasses.dataclass(frozen=True)
class BlockStyle:
    """What published encoders' blocks differ in; the defaults are those of He et al."""

    mlp: MlpKind = "gelu"
    layer_scale: float | None = None
    """Initial value of a factor for each channel of what a branch adds; None has no factors."""
    norm_eps: float = 1e-6


def layer_norm(
    width: int, *, epsilon: float = 1e-6, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """Make a LayerNorm whose statistics are float32 in two passes."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def linear(
    inputs: int, outputs: int | tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """Make a linear map of the last axis with a Xavier-uniform kernel and a zero bias."""
    return nnx.LinearGeneral(inputs, outputs, kernel_init=xavier, dtype=dtype, rngs=rngs)


def torch_uniform(inputs: int) -> Callable[..., Array]:
    """Make PyTorch's default initializer: uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


def torch_linear(
    inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.LinearGeneral:
    """Make a linear map of the last axis with PyTorch's default kernel and bias."""
    uniform = torch_uniform(inputs)
    return nnx.LinearGeneral(
        inputs, outputs, kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs
    )


class Attention(nnx.Module):
    """Multi-head self-attention; the kernel of qkv is [d, 3, heads, d / heads]."""

    def __init__(self, width: int, heads: int, *, compute: Compute, rngs: nnx.Rngs):
        dtype = compute.dtype
        self.backend: Backend = compute.attention
        self.qkv = linear(width, (3, heads, width // heads), dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        qkv = self.qkv(x)  # b n 3 heads hd
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], backend=self.backend)  # b n heads hd
        return self.out(y.reshape(x.shape))  # b n d


class CrossAttention(nnx.Module):
    """Multi-head attention to another sequence of the same width."""

    def __init__(self, width: int, heads: int, *, compute: Compute, rngs: nnx.Rngs):
        dtype = compute.dtype
        self.backend: Backend = compute.attention
        self.q = linear(width, (heads, width // heads), dtype=dtype, rngs=rngs)
        self.kv = linear(width, (2, heads, width // heads), dtype=dtype, rngs=rngs)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b n d"]:
        kv = self.kv(context)  # b m 2 heads hd
        y = attend(self.q(x), kv[:, :, 0], kv[:, :, 1], backend=self.backend)  # b n heads hd
        return self.out(y.reshape(x.shape))  # b n d


@jax.custom_vjp
def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Apply the exact GELU of Hendrycks and Gimpel (arXiv 1606.08415) in float32.

    Differs from jax.nn.gelu in that the backward pass keeps its input alone, and computes the rest
    again; and in erf for erfc, which is slow on CPUs.
    """
    return _gelu(x)[0].astype(x.dtype)


def _gelu(x: Array) -> tuple[Array, Array]:
    """Return x P(X <= x) and the probability, float32."""
    x = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(x * 2**-0.5))
    return x * below, below


def _gelu_backward(x: Array, d_out: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    slope = _gelu(x)[1] + wide * density
    return ((d_out.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Mlp(nnx.Module):
    """Two linear maps with an exact GELU between them; the hidden width is 4 d."""

    def __init__(self, width: int, *, compute: Compute, rngs: nnx.Rngs):
        self.up = linear(width, 4 * width, dtype=compute.dtype, rngs=rngs)
        self.down = linear(4 * width, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        hidden = constrain(self.up(x), "rows", None, "hidden")
        return self.down(gelu(hidden))


class SwiGlu(nnx.Module):
    """A gated MLP (Shazeer, arXiv 2002.05202): SiLU of one linear map times another; no dropout.

    The hidden width is two thirds of 4 d, to the next multiple of 8, as in DINOv2.
    """

    def __init__(self, width: int, *, compute: Compute, rngs: nnx.Rngs):
        hidden = -(-int(4 * width * 2 / 3) // 8) * 8
        self.gate_up = linear(width, (2, hidden), dtype=compute.dtype, rngs=rngs)
        self.down = linear(hidden, width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        hidden = constrain(self.gate_up(x), "rows", None, None, "hidden")  # b n 2 e
        return self.down(jax.nn.silu(hidden[:, :, 0]) * hidden[:, :, 1])  # b n d


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and around a residual.

    With `cross`, attention is to a context, which is not normed again.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        cross: bool = False,
        style: BlockStyle | None = None,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        s, dtype = style or BlockStyle(), compute.dtype
        attention = CrossAttention if cross else Attention
        self.norm1 = layer_norm(width, epsilon=s.norm_eps, dtype=dtype, rngs=rngs)
        self.attention = attention(width, heads, compute=compute, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=s.norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = (SwiGlu if s.mlp == "swiglu" else Mlp)(width, compute=compute, rngs=rngs)
        self.scaled = s.layer_scale is not None
        if s.layer_scale is not None:
            self.gamma1 = nnx.Param(jnp.full((width,), s.layer_scale))
            self.gamma2 = nnx.Param(jnp.full((width,), s.layer_scale))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *context: Float[Array, "b m d"],
        keep: Float[Array, "b 2"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Run the block; `keep` multiplies what attention and MLP add to each row."""
        first, second = (1.0, 1.0) if keep is None else keep.T[:, :, None, None].astype(x.dtype)
        if self.scaled:
            gammas = (self.gamma1[...], self.gamma2[...])
            one, two = (gamma.astype(x.dtype)[None, None] for gamma in gammas)
            first, second = first * one, second * two
        x = x + first * self.attention(self.norm1(x), *context)
        return x + second * self.mlp(self.norm2(x))


def dropout(
    x: Float[Array, "b ..."],
    keys: Key[Array, " b"] | None,
    *,
    rate: float,
    site: int | Int[Array, ""],
) -> Float[Array, "b ..."]:
    """Zero a share of `rate`, and scale the rest by 1 / (1 - rate); without keys do nothing.

    A row's draw comes of its own key and of `site`, a number for each use in a model: it does not
    depend on the batch or on how that lies on devices.
    """
    if keys is None or rate == 0.0:
        return x

    def draw(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(draw)(keys), x / (1.0 - rate), 0)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make `depth` modules as one, whose every parameter has a leading axis l."""
    split = nnx.split_rngs(splits=depth)
    return split(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)


def block_of(blocks: nnx.Module, index: int) -> Any:
    """Take one block out of a stack."""
    graph, stacked = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], stacked))


def rollout(
    blocks: nnx.Module, stream: Float[Array, "l b n d"], rows: Float[Array, "b c n"]
) -> Float[Array, "b c n"]:
    """Carry weights of the last block's tokens back to the tokens that entered the first.

    The attention rollout of Abnar and Zuidema (arXiv 2005.00928, section 3.2), heads averaged,
    with half of each block's map for the residual; `stream` has the tokens before each block.
    Differs from it in that rows are carried back, so that no product of maps is ever held.
    """
    graph, stacked = nnx.split(blocks)

    def body(rows, block):
        params, x = block
        merged: Any = nnx.merge(graph, params)
        qkv = merged.attention.qkv(merged.norm1(x))  # b n 3 heads hd
        return (rows + read_back(rows, qkv[:, :, 0], qkv[:, :, 1])) / 2, None

    return jax.lax.scan(body, rows.astype(jnp.float32), (stacked, stream), reverse=True)[0]


def checkpointed(body: Callable[..., Any], *, remat: Remat) -> Callable[..., Any]:
    """Make the body of a scan over blocks keep only what `Compute.remat` says."""
    if remat == "none":
        return body
    policies = jax.checkpoint_policies
    saved = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(SAVED)
    )
    return jax.checkpoint(body, policy=saved if remat == "dots" else None, prevent_cse=False)


def scan(
    blocks: nnx.Module,
    x: Float[Array, "b n d"],
    *context: Float[Array, "b m d"],
    remat: Remat,
    last: int = 1,
    keep: Float[Array, "l b 2"] | None = None,
) -> Float[Array, "s b n d"]:
    """Run a stack of blocks one after the other; return what the `last` s of them gave.

    Compiled once for the blocks before those and once for them, whatever the depth. `keep`
    multiplies what each block's two branches add to each row (stochastic depth). The residual
    stream is split over rows between blocks: left to itself, the compiler replicates it on large
    meshes.
    """
    graph, stacked = nnx.split(blocks)

    def body(x, block):
        params, kept = block
        x = constrain(x, "rows", None, None)
        return nnx.merge(graph, params)(x, *context, keep=kept), None

    body = checkpointed(body, remat=remat)

    def gather(x, block):
        return (x := constrain(body(x, block)[0], "rows", None, None)), x

    if last == 1:
        return constrain(jax.lax.scan(body, x, (stacked, keep))[0], "rows", None, None)[None]
    depth = len(jax.tree.leaves(stacked)[0])
    first, rest = (
        jax.tree.map(lambda leaf, part=part: leaf[part], (stacked, keep))
        for part in (slice(depth - last), slice(depth - last, None))
    )
    return jax.lax.scan(gather, jax.lax.scan(body, x, first)[0], rest)[1]
