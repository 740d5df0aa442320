"""From the patches of a study's films to the memory that a T5 decoder reads, and that decoder.

Each film's patches are mapped to the decoder's width, told apart by an embedding of their view, and
normed, as what T5's own encoder gives is. A resampler of learned queries, one layer of the
Perceiver (Jaegle et al., arXiv 2103.03206, section 3.1), makes a few hundred tokens of thousands.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.heads.query import QueryAttention
from xmae_jax.models.layers import Compute, Mlp, layer_norm, linear
from xmae_jax.models.t5 import T5Config, T5Decoder

VIEWS = 3
"""Kinds of view that are told apart: frontal, lateral, other."""


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Settings of the resampler; its width is the decoder's."""

    queries: int
    """Tokens of memory that a study has, whatever its films have."""
    heads: int

    def __post_init__(self) -> None:
        if min(self.queries, self.heads) < 1:
            raise ValueError("queries and heads must be positive")


@dataclasses.dataclass(frozen=True)
class ReportHeadConfig:
    """Settings of the head."""

    decoder: T5Config
    resampler: ResamplerConfig | None
    """None lets the decoder read every patch."""

    def __post_init__(self) -> None:
        if self.resampler is not None and self.decoder.width % self.resampler.heads:
            raise ValueError(
                f"decoder.width {self.decoder.width} is no multiple of resampler.heads"
                f" {self.resampler.heads}"
            )


class Context(NamedTuple):
    """What a decoder reads of a study; tokens that are not valid are zeros."""

    tokens: Float[Array, "b m d"]
    valid: Bool[Array, "b m"]
    read: Float[Array, "b m n"] | None
    """How much of each patch a token holds, heads averaged; None where each token is a patch."""


class Resampler(nnx.Module):
    """Learned queries that read the patches: attention and an MLP, each behind a norm."""

    def __init__(self, config: ResamplerConfig, width: int, *, compute: Compute, rngs: nnx.Rngs):
        dtype = compute.dtype
        shape = (config.queries, width)
        self.learned_queries = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = QueryAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, compute=compute, rngs=rngs)
        self.norm3 = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], valid: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b q n"]]:
        """Return the queries' tokens, and which share of each patch they hold."""
        queries = self.learned_queries[...].astype(x.dtype)  # q d
        y = jnp.broadcast_to(queries[None], (x.shape[0], *queries.shape))  # b q d
        read, weights = self.attention(self.norm1(y), x, valid, None, rate=0.0, site=0)
        y = y + read
        y = y + self.mlp(self.norm2(y))
        return self.norm3(y), weights.mean(axis=1)


class ReportHead(nnx.Module):
    """Films' patches to `Context`; `decoder` writes from that."""

    def __init__(self, config: ReportHeadConfig, *, width: int, compute: Compute, rngs: nnx.Rngs):
        inner, dtype = config.decoder.width, compute.dtype
        self.width = inner
        self.projection = linear(width, inner, dtype=dtype, rngs=rngs)
        self.views = nnx.Param(0.02 * jax.random.normal(rngs.params(), (VIEWS, inner)))
        self.norm = layer_norm(inner, dtype=dtype, rngs=rngs)
        self.resampled = config.resampler is not None
        if config.resampler is not None:
            self.resampler = Resampler(config.resampler, inner, compute=compute, rngs=rngs)
        self.decoder = T5Decoder(config.decoder, compute=compute, rngs=rngs)

    def context(
        self,
        patches: Float[Array, "b s n d"],
        *,
        valid: Bool[Array, "b s n"],
        views: Int[Array, "b s"],
    ) -> Context:
        """Join the patches of a study's films; what is not valid reaches no value or gradient."""
        b, s, n, _ = patches.shape
        patches = jnp.where(valid[..., None], patches, 0)
        view = self.views[...].astype(patches.dtype)[views]  # b s d
        x = self.norm(self.projection(patches) + view[:, :, None]).reshape(b, s * n, -1)
        valid, read = valid.reshape(b, s * n), None
        if self.resampled:
            x, read = self.resampler(x, valid)
            valid = jnp.broadcast_to(valid.any(axis=1, keepdims=True), x.shape[:2])
        return Context(jnp.where(valid[..., None], x, 0), valid, read)

    def nothing(self, rows: int) -> Context:
        """Return the context of studies without films: one token, which is not valid."""
        return Context(jnp.zeros((rows, 1, self.width)), jnp.zeros((rows, 1), bool), None)
