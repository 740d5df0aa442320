"""The masked auto-encoder's decoder: encoded visible patches and mask tokens to pixels.

He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377, section 3).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xmae_jax.models.layers import Block, layer_norm, linear, scan, stack
from xmae_jax.models.position import sincos_2d
from xmae_jax.typing import Features


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.depth, self.heads) < 1:
            raise ValueError("depth and heads must be positive")
        if self.width < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 and of heads {self.heads}")


class PixelDecoder(nnx.Module):
    """Predict every patch's pixels by self-attention over all patches and CLS."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        encoder_width: int,
        patch_size: int,
        base_grid: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        c = config
        self.config, self.base_grid, self.dtype = c, base_grid, dtype
        self.embed = linear(encoder_width, c.width, dtype=dtype, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.width)))
        self.blocks = stack(
            lambda r: Block(c.width, c.heads, dtype=dtype, rngs=r), c.depth, rngs=rngs
        )
        self.norm = layer_norm(c.width, dtype=dtype, rngs=rngs)
        self.pixels = linear(c.width, patch_size**2, dtype=dtype, rngs=rngs)

    def __call__(self, features: Features, hidden: Bool[Array, "b n"]) -> Float[Array, "b n pp"]:
        """Return float32 pixels of all patches, flattened as (row, column).

        `hidden` is false exactly at `features.ids`, which are ascending.
        """
        table = sincos_2d(features.grid, self.config.width, base_grid=self.base_grid)  # n d
        tokens = self.embed(features.patches)  # b k d
        place = jnp.maximum(jnp.cumsum(~hidden, axis=1) - 1, 0)  # b n
        seen = jnp.take_along_axis(tokens, place[:, :, None], axis=1)  # b n d
        x = jnp.where(hidden[:, :, None], self.mask_token[...].astype(self.dtype), seen)
        x = x + jnp.asarray(table, self.dtype)[None]
        cls = self.embed(features.cls[:, None])  # b 1 d
        x = self.norm(scan(self.blocks, jnp.concatenate([cls, x], axis=1)))  # b n+1 d
        return self.pixels(x[:, 1:]).astype(jnp.float32)
