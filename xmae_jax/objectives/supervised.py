"""Disease recognition: an encoder and a head, trained on findings of which some are unknown.

The recipe is that of He et al. (arXiv 2111.06377, appendix A.2): layer-wise rates
(`optim.layer_decay`), stochastic depth (Huang et al., arXiv 1603.09382), all of it optional. The
loss is a mean over the known findings of the global batch, so a film of which nothing is known
changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax import metrics, rng
from xmae_jax.attention import Backend
from xmae_jax.heads import HeadConfig, make_head
from xmae_jax.models.layers import Compute, Remat
from xmae_jax.models.vit import Encoder, EncoderConfig
from xmae_jax.objectives import losses
from xmae_jax.objectives.base import ModuleObjective, grid_of
from xmae_jax.objectives.losses import ClassStats, LossConfig, Uncertain
from xmae_jax.objectives.mae import normalise
from xmae_jax.typing import Batch, Features, LossOut, Params, Prepared


class Classifier(nnx.Module):
    """An encoder that sees all patches, and a head."""

    def __init__(self, config: Supervised, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        compute = Compute(dtype, config.attention, config.remat)
        self.encoder = Encoder(config.encoder, compute=compute, rngs=rngs)
        self.head = config.make_head(rngs=rngs)
        self.layers = config.head.layers

    def features(self, batch: Batch, keep: Float[Array, "l b 2"] | None = None) -> Features:
        """Encode whole films."""
        with jax.named_scope("encoder"):
            features = self.encoder(normalise(batch["image"]), last=self.layers, keep=keep)
        return features._replace(valid=batch["valid"])


@dataclasses.dataclass(frozen=True)
class Supervised(ModuleObjective):
    """The objective; its fields are the `objective` part of a config."""

    image_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    attention: Backend
    remat: Remat
    encoder: EncoderConfig
    head: HeadConfig
    findings: tuple[str, ...]
    """What is predicted, by names of `data/findings.py`."""
    criterion: LossConfig
    uncertain: Uncertain
    """What CheXpert's "uncertain" counts as in training; scores leave it out."""
    drop_path: float
    """Probability that the last block is left out for a row; it grows linearly from 0."""
    ema_decay: float | None
    class_stats: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None
    """Films of the training split in which each finding is present, is certain (present or absent),
    and is uncertain; not a key of configs."""

    view = "labelled"
    module = Classifier

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if not self.findings or len(set(self.findings)) < len(self.findings):
            raise ValueError(f"findings must be some, each once, got {self.findings}")
        if self.head.layers > self.encoder.depth:
            raise ValueError(
                f"head.layers is {self.head.layers}, and the encoder has {self.encoder.depth}"
            )
        _ = self.grid
        # What a head cannot be made of, such as a file that is not there, is a bad config.
        nnx.eval_shape(lambda: self.make_head(rngs=nnx.Rngs(0)))

    def make_head(self, *, rngs: nnx.Rngs) -> Any:
        """Make the head alone."""
        return make_head(
            self.head,
            width=self.encoder.width,
            findings=len(self.findings),
            dtype=jnp.dtype(self.compute_dtype),
            rngs=rngs,
            names=self.findings,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return grid_of(self.image_size, self.encoder.patch_size)

    @property
    def counts(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Return `class_stats`, or ones."""
        some = (1.0,) * len(self.findings)
        return self.class_stats or (some, some, some)

    def stats(self) -> ClassStats:
        """Return the counts of the training split as training reads labels, as arrays."""
        return losses.stats_of(*map(jnp.asarray, self.counts), uncertain=self.uncertain)

    def prepare(self, batch: Batch, rng_key: Key[Array, ""], step: Array) -> Prepared:
        """Read the labels, and draw what dropout and stochastic depth need, one key a row."""
        labels, known = losses.targets(batch["labels"], uncertain=self.uncertain)
        known &= batch["mask"][:, None]
        head_keys, depth_keys = (
            rng.row_keys(key, len(labels)) for key in jax.random.split(rng_key)
        )
        more: dict[str, Array] = {"labels": labels, "known": known, "head_keys": head_keys}
        if self.drop_path:
            rates = jnp.linspace(0.0, self.drop_path, self.encoder.depth)[:, None]  # l 1
            draw = jax.vmap(lambda key: jax.random.uniform(key, (self.encoder.depth, 2)))
            more["keep"] = (draw(depth_keys) >= rates[None]) / (1.0 - rates[None])  # b l 2
        weights = {"classification": known.sum().astype(jnp.float32)}
        return Prepared({**batch, **more}, weights)

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: Array,
        step: Array,
    ) -> LossOut:
        """Sum the loss of the known findings."""
        model = self.model(params, frozen)
        keep = batch["keep"].swapaxes(0, 1) if self.drop_path else None
        features = model.features(batch, keep)
        with jax.named_scope("head"):
            logits = model.head(features, keys=batch["head_keys"])["logits"]
        known = batch["known"]
        error = losses.loss(
            self.criterion,
            logits=logits,
            labels=batch["labels"],
            known=known,
            class_stats=self.stats(),
        )
        right = ((logits > 0) == (batch["labels"] > 0.5)).astype(jnp.float32)
        return LossOut(
            totals={"classification": error.sum()},
            metrics={"accuracy": metrics.mean_of(right, known)},
            extra=extra,
        )

    def classify(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return `logits` float32 [b c]."""
        model = self.averaged(params, frozen, extra)
        return {"logits": model.head(model.features(batch))["logits"]}

    def predict_fns(self):
        """Return the one prediction: `classify`."""
        return {"classify": self.classify}
