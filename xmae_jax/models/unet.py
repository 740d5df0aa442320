"""A U-Net: features of a film at one resolution that know of all coarser ones.

Ronneberger et al., U-Net (arXiv 1505.04597). Differs from it in that pixels come in by patches
(space to depth), convolutions are padded and each is followed by a group norm (Wu and He, arXiv
1803.08494), pooling is a mean, and the way back up repeats values before it convolves them.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xmae_jax.models.patches import patchify

GROUP = 8
"""Channels of a group of the norm."""


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network."""

    patch_size: int
    """Side of the pixels that one feature of the finest level covers."""
    widths: tuple[int, ...]
    """Channels of each level, finest first; each level has half the resolution of the last."""

    def __post_init__(self) -> None:
        if self.patch_size < 1 or not self.widths:
            raise ValueError("patch_size must be positive, and widths name a level or more")
        if any(width < 1 or width % GROUP for width in self.widths):
            raise ValueError(f"widths {self.widths} are to be multiples of {GROUP}")

    @property
    def stride(self) -> int:
        """Pixels along a side of the coarsest level's features."""
        return self.patch_size * 2 ** (len(self.widths) - 1)


class ConvBlock(nnx.Module):
    """Two 3 x 3 convolutions, each with a group norm and a ReLU."""

    def __init__(
        self, inputs: int, width: int, *, group: int = GROUP, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        conv = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(
            nnx.GroupNorm, num_groups=None, group_size=group, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
        self.conv1, self.norm1 = conv(inputs, width), norm(width)
        self.conv2, self.norm2 = conv(width, width), norm(width)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w d"]:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


def _halve(x: Float[Array, "b h w d"]) -> Float[Array, "b h/2 w/2 d"]:
    b, h, w, d = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, d).mean(axis=(2, 4))


def max_pool(x: Float[Array, "b h w d"]) -> Float[Array, "b h/2 w/2 d"]:
    """Pool two by two values by their maximum: as nnx.max_pool, whose gradient is slow on CPUs."""
    return jnp.maximum(
        jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2]),
        jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2]),
    )


def _double(x: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w d"]:
    b, h, w, d = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, d))
    return wide.reshape(b, 2 * h, 2 * w, d)


class UNet(nnx.Module):
    """Down through the levels and up again, with a copy across at each."""

    def __init__(self, config: UNetConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        inputs = config.patch_size**2
        widths = config.widths
        for level, width in enumerate(widths):
            block = ConvBlock(inputs, width, dtype=dtype, rngs=rngs)
            setattr(self, f"down{level}", block)
            inputs = width
        for level in reversed(range(len(widths) - 1)):
            joined = widths[level] + widths[level + 1]
            block = ConvBlock(joined, widths[level], dtype=dtype, rngs=rngs)
            setattr(self, f"up{level}", block)

    def __call__(self, image: Float[Array, "b h w 1"]) -> Float[Array, "b gh gw d"]:
        """Return features of the finest level; height and width are multiples of the stride."""
        p, levels = self.config.patch_size, len(self.config.widths)
        b, h, w, _ = image.shape
        x = patchify(image, p).reshape(b, h // p, w // p, p * p).astype(self.dtype)  # b gh gw pp
        kept = []
        for level in range(levels):
            x = getattr(self, f"down{level}")(x if level == 0 else _halve(x))
            kept.append(x)
        for level in reversed(range(levels - 1)):
            x = getattr(self, f"up{level}")(jnp.concatenate([kept[level], _double(x)], axis=-1))
        return x
