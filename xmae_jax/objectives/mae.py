"""Masked auto-encoding: hide most patches of a film, predict their pixels.

He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377), with the masking of
Wang et al., Pre-training on High Definition X-ray Images (arXiv 2404.17926). Differs from both in
that padding is never a target, and that the mean runs over the hidden patches of the global batch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped, UInt8

from xmae_jax import metrics, rng
from xmae_jax.attention import Backend
from xmae_jax.models.layers import Compute, Remat
from xmae_jax.models.patches import patchify, unpatchify
from xmae_jax.models.pixel_decoder import DecoderConfig, PixelDecoder
from xmae_jax.models.vit import Encoder, EncoderConfig
from xmae_jax.objectives import masking
from xmae_jax.objectives.base import ModuleObjective, grid_of
from xmae_jax.typing import Batch, LossOut, Params, Prepared


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How visible patches are drawn, see `objectives/masking.py`."""

    kind: Literal["contour", "rectangle", "random"]
    keep: int
    ratio_inside: float
    ratio_outside: float

    def __post_init__(self) -> None:
        for name in ("ratio_inside", "ratio_outside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


class MaskedAutoencoder(nnx.Module):
    """An encoder of visible patches and a decoder of hidden ones."""

    def __init__(self, config: Mae, *, rngs: nnx.Rngs):
        compute = Compute(jnp.dtype(config.compute_dtype), config.attention, config.remat)
        self.encoder = Encoder(config.encoder, compute=compute, rngs=rngs)
        self.decoder = PixelDecoder(
            config.decoder,
            encoder_width=config.encoder.width,
            patch_size=config.encoder.patch_size,
            base_grid=config.encoder.base_grid,
            norm_eps=config.encoder.norm_eps,
            compute=compute,
            rngs=rngs,
        )


def normalise(pixels: UInt8[Array, "*n"]) -> Float[Array, "*n"]:
    """Map uint8 pixels to [-1, 1], the mean 0.5 and deviation 0.5 of the released code."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class Mae(ModuleObjective):
    """The objective; its fields are the `objective` part of a config."""

    image_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    attention: Backend
    remat: Remat
    encoder: EncoderConfig
    decoder: DecoderConfig
    mask: MaskConfig
    norm_pix_loss: bool
    norm_pix_floor: float
    """Smallest deviation that a patch is divided by, in [-1, 1] pixels. He et al. add 1e-6 to the
    variance; on black film that blows up JPEG noise, so a floor of one grey level is usual here."""
    ema_decay: float | None

    view = "film"
    module = MaskedAutoencoder
    contour_threshold = 0.5
    """Share of a patch that the contour must cover for it to count as inside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.grid[0] * self.grid[1]
        if not 0 < self.mask.keep < n:
            raise ValueError(f"mask.keep is {self.mask.keep}, and the grid has {n} patches")
        if self.encoder.stem == "hybrid":
            raise ValueError("encoder.stem 'hybrid' sees the whole film: nothing can be hidden")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return grid_of(self.image_size, self.encoder.patch_size)

    def _region(self, batch: Batch) -> Shaped[Array, "b m m"]:
        """Return what `mask.kind` masks by, as cells: the contour, the rectangle, or nothing."""
        lung, (gh, gw) = batch["lung"], self.grid
        if self.mask.kind == "rectangle":
            cells = masking.rectangle_inside(self.grid).reshape(gh, gw).astype(np.uint8)
            cells = np.kron(cells, np.ones((lung.shape[1] // gh, lung.shape[2] // gw), np.uint8))
            return jnp.broadcast_to(jnp.asarray(cells)[None], lung.shape)
        return lung if self.mask.kind == "contour" else jnp.zeros_like(lung)

    def _masked(
        self, batch: Batch, keys: Key[Array, " b"], *, share: float = 1.0
    ) -> dict[str, Array]:
        """Add `keep_ids`, `hidden`, `ids`, `target`, `inside` (of the contour) and `uniform`.

        `ids` [b q] are the hidden patches to predict, a `share` of them, valid ones first.
        """
        valid = masking.box_coverage(batch["box"], self.grid) >= 0.5
        region = masking.lung_coverage(self._region(batch), self.grid) >= self.contour_threshold
        mask = masking.contour_mask(
            keys,
            region,
            keep=self.mask.keep,
            ratio_inside=self.mask.ratio_inside,
            ratio_outside=self.mask.ratio_outside,
            valid=valid,
        )
        contour = masking.lung_coverage(batch["lung"], self.grid) >= self.contour_threshold
        predicted, count = mask.hidden, mask.hidden.shape[1] - self.mask.keep
        if share < 1:
            count = max(1, round(share * count))
            predicted = masking.draw(keys, mask.hidden, valid, count=count)
        return {
            **batch,
            "keep_ids": mask.keep_ids,
            "hidden": mask.hidden,
            "ids": masking.chosen_ids(predicted, count),
            "target": predicted & valid & batch["mask"][:, None],
            "inside": contour,
            "uniform": mask.uniform,
        }

    def prepare(self, batch: Batch, rng_key: Key[Array, ""], step: Array) -> Prepared:
        """Draw the masks; weigh the one term by its target patches."""
        keys = rng.row_keys(rng_key, batch["image"].shape[0])
        masked = self._masked(batch, keys, share=self.decoder.predict_share)
        return Prepared(masked, {"reconstruction": masked["target"].sum().astype(jnp.float32)})

    def _targets(self, patches: Float[Array, "b n pp"]) -> tuple[Array, Array, Array]:
        """Return (target, mean, deviation) of each patch; 0 and 1 without norm_pix_loss."""
        if not self.norm_pix_loss:
            return patches, jnp.zeros(()), jnp.ones(())
        mean = patches.mean(axis=-1, keepdims=True)
        variance = patches.var(axis=-1, keepdims=True, ddof=1)  # ddof 1 as torch.var
        deviation = jnp.maximum(jnp.sqrt(variance + 1e-6), self.norm_pix_floor)
        return (patches - mean) / deviation, mean, deviation

    def _predict(self, model: MaskedAutoencoder, batch: Batch) -> Float[Array, "b q pp"]:
        image = normalise(batch["image"])
        with jax.named_scope("encoder"):
            features = model.encoder(image, batch["keep_ids"])
        with jax.named_scope("decoder"):
            return model.decoder(features, batch["hidden"], batch["ids"])

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: Array,
        step: Array,
    ) -> LossOut:
        """Sum the squared error of hidden valid patches, each averaged over its pixels."""
        model = self.model(params, frozen)
        predicted = self._predict(model, batch)
        place = (jnp.arange(len(predicted))[:, None], batch["ids"])
        patches = patchify(batch["image"], self.encoder.patch_size)[place]  # b q pp
        aim, _, _ = self._targets(normalise(patches))
        error = jnp.mean((predicted - aim) ** 2, axis=-1)  # b q
        target, inside = batch["target"][place], batch["inside"][place]
        rows = batch["mask"].astype(jnp.float32)
        return LossOut(
            totals={"reconstruction": jnp.where(target, error, 0.0).sum()},
            metrics={
                "loss_inside": metrics.mean_of(error, target & inside),
                "loss_outside": metrics.mean_of(error, target & ~inside),
                "uniform_rows": metrics.mean_of(batch["uniform"].astype(jnp.float32), rows),
            },
            extra=extra,
        )

    def reconstruct(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Predict the hidden patches under masks that depend on the record alone.

        Returns `reconstruction` float32 [b h w 1] in pixel values 0 to 1 (visible patches as they
        are), `hidden` and `target` [b n], the `region` [b m m] that masked, and `given_statistics`
        [b]: with norm_pix_loss a prediction says nothing of a patch's mean and deviation, so the
        true ones are put in, as the pictures of He et al. do.
        """
        masked = self._masked(batch, rng.id_keys(rng_key, batch["id"]))
        model = self.averaged(params, frozen, extra)
        predicted = self._predict(model, masked)
        patches = patchify(normalise(batch["image"]), self.encoder.patch_size)  # b n pp
        place = (jnp.arange(len(predicted))[:, None], masked["ids"])
        _, mean, deviation = self._targets(patches[place])
        patches = patches.at[place].set(predicted * deviation + mean)
        pixels = unpatchify(patches, self.grid, self.encoder.patch_size)
        return {
            "reconstruction": (pixels + 1.0) / 2.0,
            "hidden": masked["hidden"],
            "target": masked["target"],
            "region": self._region(batch),
            "given_statistics": jnp.full(len(predicted), self.norm_pix_loss),
        }

    def predict_fns(self):
        """Return the one prediction: `reconstruct`."""
        return {"reconstruct": self.reconstruct}
