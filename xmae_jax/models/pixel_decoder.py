"""The masked auto-encoder's decoder: encoded visible patches and mask tokens to pixels.

Two kinds. "self": all patches attend to each other, as in He et al., Masked Autoencoders Are
Scalable Vision Learners (arXiv 2111.06377, section 3). "cross": hidden patches attend to the
encoded visible ones only, as in Fu et al., Rethinking Patch Dependence for Masked Autoencoders
(CrossMAE, arXiv 2401.14391, section 3); differs from it in that every block reads the encoder's
last layer and no mixture of layers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.models.layers import Block, BlockStyle, Compute, layer_norm, linear, scan, stack
from xmae_jax.models.position import sincos_2d
from xmae_jax.typing import Features


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder."""

    kind: Literal["self", "cross"]
    predict_share: float
    """Share of the hidden patches that training predicts; below 1 for "cross" only, where a patch
    that is not predicted costs nothing."""
    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.depth, self.heads) < 1:
            raise ValueError("depth and heads must be positive")
        if not 0 < self.predict_share <= 1:
            raise ValueError(f"predict_share must lie in (0, 1], got {self.predict_share}")
        if self.kind == "self" and self.predict_share != 1:
            raise ValueError('predict_share below 1 wants kind "cross"')
        if self.width < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 and of heads {self.heads}")


class PixelDecoder(nnx.Module):
    """Predict the pixels of hidden patches."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        encoder_width: int,
        patch_size: int,
        base_grid: int,
        norm_eps: float,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        c, dtype = config, compute.dtype
        self.config, self.base_grid, self.compute = c, base_grid, compute
        self.embed = linear(encoder_width, c.width, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.width)))
        cross, style = c.kind == "cross", BlockStyle(norm_eps=norm_eps)
        self.blocks = stack(
            lambda r: Block(c.width, c.heads, cross=cross, style=style, compute=compute, rngs=r),
            c.depth,
            rngs=rngs,
        )
        self.norm = layer_norm(c.width, epsilon=norm_eps, dtype=dtype, rngs=rngs)
        self.pixels = linear(c.width, patch_size**2, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: Features, hidden: Bool[Array, "b n"], ids: Int[Array, "b q"]
    ) -> Float[Array, "b q pp"]:
        """Return float32 pixels of the patches `ids`, flattened as (row, column).

        `hidden` is false exactly at `features.ids`, which are ascending; `ids` are hidden.
        """
        dtype, remat = self.compute.dtype, self.compute.remat
        table = sincos_2d(features.grid, self.config.width, base_grid=self.base_grid)  # n d
        place = jnp.asarray(table, dtype)
        seen = self.embed(features.patches)  # b k d
        cls = self.embed(features.cls[:, None])  # b 1 d
        if self.config.kind == "self":
            order = jnp.maximum(jnp.cumsum(~hidden, axis=1) - 1, 0)  # b n
            seen = jnp.take_along_axis(seen, order[:, :, None], axis=1)  # b n d
            x = jnp.where(hidden[:, :, None], self.mask_token[...].astype(dtype), seen)
            x = jnp.concatenate([cls, x + place[None]], axis=1)  # b n+1 d
            x = scan(self.blocks, x, remat=remat)[-1, :, 1:]  # b n d
            x = jnp.take_along_axis(x, ids[:, :, None], axis=1)  # b q d
        else:
            context = jnp.concatenate([cls, seen + place[features.ids]], axis=1)  # b k+1 d
            x = self.mask_token[...].astype(dtype) + place[ids]  # b q d
            x = scan(self.blocks, x, context, remat=remat)[-1]
        return self.pixels(self.norm(x)).astype(jnp.float32)
