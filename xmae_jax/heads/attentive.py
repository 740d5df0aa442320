"""Attentive pooling: one learned query attends to the patches, then a linear map.

The attentive probing of Chen et al., Context Autoencoder (arXiv 2202.03026, section 4), which
Bardes et al., V-JEPA (arXiv 2404.08471, section 4) use with an MLP behind it. Attention alone, as
in the former; differs from it in a LayerNorm for the BatchNorm, so that no row depends on another,
and in a query that is learned in the space of the keys, where a map of it would add nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax.heads.linear import linear_out
from xmae_jax.heads.parts import attention_map, tokens
from xmae_jax.models.layers import layer_norm, linear
from xmae_jax.typing import Features


@dataclasses.dataclass(frozen=True)
class AttentiveConfig:
    """Settings of attentive pooling."""

    kind: Literal["attentive"]
    layers: int
    """How many of the last blocks are read, joined along the width."""
    width: int
    heads: int

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be positive, got {self.layers}")
        if min(self.width, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")


class AttentiveHead(nnx.Module):
    """Pool the patches by one query, norm, map to logits."""

    def __init__(
        self,
        config: AttentiveConfig,
        *,
        width: int,
        findings: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        c = config
        self.config, self.findings, self.dtype = c, findings, dtype
        inputs, split = c.layers * width, (c.heads, c.width // c.heads)
        self.query = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, *split)))
        self.key = linear(inputs, split, dtype=dtype, rngs=rngs)
        self.value = linear(inputs, split, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(c.width, dtype=jnp.dtype(jnp.float32), rngs=rngs)
        self.out = linear_out(c.width, findings, rngs=rngs)

    def __call__(
        self, features: Features, *, keys: Key[Array, " b"] | None = None
    ) -> dict[str, Float[Array, "b ..."]]:
        """Return `logits` [b c] and `attention` [b heads c k], the same for all findings.

        There is no dropout, so `keys` are of no use.
        """
        _, patches = tokens(features, layers=self.config.layers)
        b, k, _ = patches.shape
        query = self.query[...].astype(self.dtype)  # 1 heads hd
        query = jnp.broadcast_to(query, (b, *query.shape))  # b 1 heads hd
        weights = attention_map(query, self.key(patches), features.valid)  # b heads 1 k
        pooled = jnp.einsum(
            "bhqk,bkhd->bqhd",
            weights.astype(self.dtype),
            self.value(patches),
            preferred_element_type=jnp.float32,
        )
        logits = self.out(self.norm(pooled.reshape(b, self.config.width)))
        shape = (b, self.config.heads, self.findings, k)
        return {"logits": logits, "attention": jnp.broadcast_to(weights, shape)}
