"""Supervised segmentation of the lungs: a U-Net, cross-entropy plus soft Dice, per channel.

Soft Dice of Milletari et al., V-Net (arXiv 1606.04797, section 3), here of each film and channel,
so that it is a sum over rows. Data sets draw lungs by different conventions (`data/lungs.py`), so
each is a channel of its own, and a row trains the pixels of each whose truth is known.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax import metrics
from xmae_jax.attention import Backend
from xmae_jax.heads.dense import DenseHead
from xmae_jax.models.layers import Remat
from xmae_jax.models.unet import UNet, UNetConfig
from xmae_jax.objectives.base import ModuleObjective
from xmae_jax.objectives.mae import normalise
from xmae_jax.typing import Batch, LossOut, Params, Prepared

CHANNELS = ("lungs", "lungs_with_heart")
"""In the order of `data/lungs.py`."""


class Segmenter(nnx.Module):
    """A U-Net and a head that gives each pixel a logit for each channel."""

    def __init__(self, config: Segment, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.unet = UNet(config.unet, dtype=dtype, rngs=rngs)
        self.dense = DenseHead(
            config.unet.widths[0],
            channels=len(CHANNELS),
            patch_size=config.unet.patch_size,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, image: Float[Array, "b h w 1"]) -> Float[Array, "b h w c"]:
        """Return float32 logits; pixels are in [-1, 1]."""
        with jax.named_scope("encoder"):
            features = self.unet(image)
        return self.dense(features)


@dataclasses.dataclass(frozen=True)
class Segment(ModuleObjective):
    """The objective; its fields are the `objective` part of a config."""

    image_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    attention: Backend
    """Of no use here: the network has none; likewise `remat`, which goes by blocks."""
    remat: Remat
    unet: UNetConfig
    ema_decay: float | None

    view = "segment"
    module = Segmenter

    def __post_init__(self) -> None:
        if self.image_size % self.unet.stride:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {self.unet.stride}, the pixels of"
                " unet's coarsest feature"
            )
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the truth along height and width: pixels."""
        return self.image_size, self.image_size

    def prepare(self, batch: Batch, rng_key: Key[Array, ""], step: Array) -> Prepared:
        """Weigh each term by the rows that train it; Dice wants a truth that is not empty."""
        known = (batch["known"] > 0) & batch["mask"][:, None, None, None]  # b h w c
        rows = {
            "bce": known.any(axis=(1, 2)),  # b c
            "dice": (known & (batch["truth"] > 0)).any(axis=(1, 2)),
        }
        weights = {
            f"{term}_{name}": train[:, c].sum().astype(jnp.float32)
            for term, train in rows.items()
            for c, name in enumerate(CHANNELS)
        }
        return Prepared(
            {**batch, "known": known, **{f"train_{k}": v for k, v in rows.items()}}, weights
        )

    def logits(self, params: Params, image: Array) -> Float[Array, "b h w c"]:
        """Run the network on uint8 films."""
        return self.model(params, {})(normalise(image))

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: Array,
        step: Array,
    ) -> LossOut:
        """Sum over films the mean cross-entropy of a channel's known pixels, and 1 - Dice."""
        logits = self.model(params, frozen)(normalise(batch["image"]))
        truth, known = batch["truth"].astype(jnp.float32), batch["known"]  # b h w c

        def over(x: Array) -> Array:
            return jnp.where(known, x, 0.0).sum(axis=(1, 2))  # b c

        pixels = jnp.maximum(over(jnp.ones_like(truth)), 1.0)
        bce = over(optax.sigmoid_binary_cross_entropy(logits, truth)) / pixels
        p = jax.nn.sigmoid(logits)
        dice = 1.0 - 2.0 * over(p * truth) / (over(p + truth) + 1e-6)
        values = {"bce": bce, "dice": dice}
        means = {
            f"{term}_{name}": metrics.mean_of(value[:, c], batch[f"train_{term}"][:, c])
            for term, value in values.items()
            for c, name in enumerate(CHANNELS)
        }
        return LossOut({name: mean.total for name, mean in means.items()}, means, extra)

    def segment(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return `probability` float32 [b h w c] of each channel."""
        logits = self.averaged(params, frozen, extra)(normalise(batch["image"]))
        return {"probability": jax.nn.sigmoid(logits)}

    def predict_fns(self):
        """Return the one prediction: `segment`."""
        return {"segment": self.segment}
