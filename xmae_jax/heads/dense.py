"""Maps of the film's own resolution from features of a coarser one."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xmae_jax.models.layers import linear


class DenseHead(nnx.Module):
    """Predict `channels` values for each of the patch_size x patch_size pixels of a feature.

    One linear map and a rearrangement: the sub-pixel convolution of Shi et al. (arXiv 1609.05158).
    """

    def __init__(
        self, width: int, *, channels: int, patch_size: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.channels, self.patch_size = channels, patch_size
        self.out = linear(width, channels * patch_size**2, dtype=dtype, rngs=rngs)

    def __call__(self, features: Float[Array, "b gh gw d"]) -> Float[Array, "b h w c"]:
        """Return float32 values."""
        b, gh, gw, _ = features.shape
        p, c = self.patch_size, self.channels
        x = self.out(features).astype(jnp.float32).reshape(b, gh, gw, p, p, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, gh * p, gw * p, c)  # b h w c
