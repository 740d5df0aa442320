"""Vision transformer encoder that reads visible patches only, or with a hybrid stem all of them.

He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377, section 3). Differs
from the reference in that pixels are gathered before they are embedded, so that a hidden patch
never enters the encoder's program and is not paid for; and in one input channel.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xmae_jax.models.layers import (
    Block,
    BlockStyle,
    Compute,
    MlpKind,
    layer_norm,
    linear,
    scan,
    stack,
    torch_linear,
)
from xmae_jax.models.patches import patchify
from xmae_jax.models.position import Resample, resample, sincos_2d
from xmae_jax.models.unet import ConvBlock, max_pool
from xmae_jax.typing import Features


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder; `configs/common.py` has Ti, S, B, L and H by name."""

    width: int
    depth: int
    heads: int
    patch_size: int
    stem: Literal["linear", "conv", "hybrid"]
    """"conv": the released three convolutions (16, 4, 1), for 64-pixel patches. "hybrid": a small
    convolutional network over the whole film, from which no patch can be hidden."""
    base_grid: int
    """Side of the grid in whose unit positions are counted, see `models/position.py`."""
    positions: Literal["sincos", "learned"]
    """"learned": a trained table of the base grid, resampled to a film's."""
    resample: Resample
    """How learned positions reach another grid; nothing else reads it."""
    registers: int
    """Tokens after CLS that attention may write to and no one reads, as in Darcet et al., Vision
    Transformers Need Registers (arXiv 2309.16588)."""
    layer_scale: float | None
    """Initial factor of what a block's branches add, for each channel; None has no factors."""
    mlp: MlpKind
    norm_eps: float
    """Added to the variance in every layer norm, of a pixel decoder's too."""

    def __post_init__(self) -> None:
        if min(self.depth, self.heads, self.patch_size, self.base_grid) < 1:
            raise ValueError("depth, heads, patch_size and base_grid must be positive")
        if self.width < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 and of heads {self.heads}")
        if self.registers < 0 or not self.norm_eps > 0:
            raise ValueError("registers must not be negative, and norm_eps must be positive")
        if self.stem == "conv" and self.patch_size != 64:
            raise ValueError(f"encoder.stem 'conv' has patches of 64 px, not {self.patch_size}")
        if self.stem == "hybrid":
            levels = self.patch_size.bit_length() - 1
            if self.patch_size != 2**levels or levels < 1 or self.width % 2 ** (levels - 1):
                raise ValueError(
                    "encoder.stem 'hybrid' has patches of 2, 4, 8 ... px, and each level half the"
                    f" channels of the next: not {self.patch_size} px and width {self.width}"
                )


class ConvStem(nnx.Module):
    """The released code's patch embedding: convolutions 16, 4 and 1 with ReLU between them.

    Source: Event-AHU/Medical_Image_Analysis, HD_Xray_Pretrain_MAE. Their strides equal their
    kernels, so inside one 64-pixel patch they are three linear maps, which is how they stand here.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv16 = torch_linear(16 * 16, width, dtype=dtype, rngs=rngs)
        self.conv4 = torch_linear(4 * 4 * width, width, dtype=dtype, rngs=rngs)
        self.conv1 = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, patches: Float[Array, "b k pp"]) -> Float[Array, "b k d"]:
        b, k, _ = patches.shape
        x = patches.reshape(b, k, 4, 16, 4, 16).transpose(0, 1, 2, 4, 3, 5)
        x = jax.nn.relu(self.conv16(x.reshape(b, k, 16, 256)))  # b k 16 d
        x = jax.nn.relu(self.conv4(x.reshape(b, k, -1)))  # b k d
        return self.conv1(x)


class HybridStem(nnx.Module):
    """A convolutional network whose map at the stride of a patch gives the tokens.

    After Dosovitskiy et al. (arXiv 2010.11929, section 3.1, "hybrid architecture"). Differs from
    theirs, a ResNet with group norms: pixels come in two by two; a level is two 3 x 3 convolutions,
    each with an instance norm (Ulyanov et al., arXiv 1607.08022) and a ReLU; between levels lies a
    2 x 2 max pooling, and channels double up to the encoder's width. A token has read more than
    its patch, and norms run over the whole square: padding is part of their statistics, so a
    film's tokens depend on how much of the square is padding.
    """

    def __init__(self, width: int, patch_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.levels = patch_size.bit_length() - 1
        widths = [width // 2 ** (self.levels - 1 - level) for level in range(self.levels)]
        for level, (inputs, outputs) in enumerate(zip([4, *widths[:-1]], widths, strict=True)):
            block = ConvBlock(inputs, outputs, group=1, dtype=dtype, rngs=rngs)
            setattr(self, f"level{level}", block)
        self.out = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, image: Float[Array, "b h w 1"]) -> Float[Array, "b n d"]:
        b, h, w, _ = image.shape
        x = patchify(image, 2).reshape(b, h // 2, w // 2, 4)
        for level in range(self.levels):
            x = getattr(self, f"level{level}")(max_pool(x) if level else x)
        return self.out(x.reshape(b, -1, x.shape[-1]))


class Encoder(nnx.Module):
    """Embed the visible patches, add positions, CLS and registers, run the blocks."""

    def __init__(self, config: EncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        c, dtype = config, compute.dtype
        self.config, self.compute = c, compute
        if c.stem == "conv":
            self.patch_embed = ConvStem(c.width, dtype=dtype, rngs=rngs)
        elif c.stem == "hybrid":
            self.patch_embed = HybridStem(c.width, c.patch_size, dtype=dtype, rngs=rngs)
        else:
            self.patch_embed = linear(c.patch_size**2, c.width, dtype=dtype, rngs=rngs)
        self.cls = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 1, c.width)))
        style = BlockStyle(c.mlp, c.layer_scale, c.norm_eps)
        self.blocks = stack(
            lambda r: Block(c.width, c.heads, style=style, compute=compute, rngs=r),
            c.depth,
            rngs=rngs,
        )
        self.norm = layer_norm(c.width, epsilon=c.norm_eps, dtype=dtype, rngs=rngs)
        if c.positions == "learned":
            shape = (c.base_grid**2, c.width)
            self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        if c.registers:
            shape = (1, c.registers, c.width)
            self.registers = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

    def _table(self, grid: tuple[int, int]) -> Float[Array, "n d"]:
        """Return the positions of a grid."""
        c = self.config
        if c.positions == "learned":
            return resample(self.positions[...], grid, how=c.resample)
        return jnp.asarray(sincos_2d(grid, c.width, base_grid=c.base_grid))

    def __call__(
        self,
        image: Float[Array, "b h w 1"],
        keep_ids: Int[Array, "b k"] | None = None,
        *,
        last: int = 1,
        keep: Float[Array, "l b 2"] | None = None,
    ) -> Features:
        """Encode the patches in `keep_ids`, or all; pixels are in [-1, 1].

        `layers` has what the `last` blocks gave; `keep` is of stochastic depth, see `layers.scan`.
        """
        x, keep_ids, grid = self._embed(image, keep_ids)
        x = scan(self.blocks, x, remat=self.compute.remat, last=last, keep=keep)
        return self.features(x, keep_ids, grid)

    def stream(self, image: Float[Array, "b h w 1"]) -> Float[Array, "s b t d"]:
        """Return the tokens (CLS, registers, patches) before each block and after the last."""
        x, _, _ = self._embed(image, None)
        rest = scan(self.blocks, x, remat="none", last=self.config.depth)
        return jnp.concatenate([x[None], rest.reshape(-1, *x.shape)])

    def features(
        self, x: Float[Array, "s b t d"], keep_ids: Int[Array, "b k"], grid: tuple[int, int]
    ) -> Features:
        """Norm what the last blocks gave, and take the tokens apart."""
        x = self.norm(x)
        layers = tuple((one[:, 0], one[:, 1 + self.config.registers :]) for one in x)
        return Features(*layers[-1], ids=keep_ids, grid=grid, layers=layers)

    def _embed(
        self, image: Float[Array, "b h w 1"], keep_ids: Int[Array, "b k"] | None
    ) -> tuple[Float[Array, "b t d"], Int[Array, "b k"], tuple[int, int]]:
        """Return the tokens that enter the blocks, which patches they are, and of which grid."""
        c, dtype = self.config, self.compute.dtype
        b, h, w, _ = image.shape
        grid = (h // c.patch_size, w // c.patch_size)
        if c.stem == "hybrid" and keep_ids is not None:
            raise ValueError("encoder.stem 'hybrid' sees the whole film: nothing can be hidden")
        if keep_ids is None:
            n = grid[0] * grid[1]
            keep_ids = jnp.broadcast_to(jnp.arange(n)[None], (b, n))
        if c.stem == "hybrid":
            x = self.patch_embed(image.astype(dtype))  # b n d
        else:
            patches = patchify(image, c.patch_size)  # b n pp
            visible = jnp.take_along_axis(patches, keep_ids[:, :, None], axis=1)  # b k pp
            x = self.patch_embed(visible.astype(dtype))
        x += self._table(grid)[keep_ids].astype(dtype)
        tokens = [self.cls[...], self.registers[...]] if c.registers else [self.cls[...]]
        tokens = [jnp.broadcast_to(t.astype(dtype), (b, *t.shape[1:])) for t in tokens]
        return jnp.concatenate([*tokens, x], axis=1), keep_ids, grid  # b 1+r+k d
