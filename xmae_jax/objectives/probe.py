"""A head on a frozen encoder, as one set of parameters or as many side by side.

Everything but where the features come from is `Supervised`'s: head, loss, what is known. With
members, each parameter of the head has a leading axis, each member starts alike and has a loss of
its own, and the optimizer gives each its rate and decay (`optim.grid`): the 13 heads of CheXFound's
protocol (Yang et al., arXiv 2502.05142) are one batched head here. Differs from the released code
in that a label that is not known is left out for every member, and not for the first alone.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax.heads.parts import mean
from xmae_jax.models.vit import EncoderConfig
from xmae_jax.objectives import losses
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import merge
from xmae_jax.typing import Batch, Features, LossOut, Params, Prepared

Reads = Literal["pooled", "patches", "films"]
"""What a batch holds: stored CLS and mean patch, these and stored patches, or films."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """The objective; tasks make it of a `Supervised`, no config names it."""

    supervised: Supervised
    reads: Reads
    members: int | None
    """Heads trained side by side; None is one without a leading axis."""

    @property
    def view(self) -> str:
        """Films are read as `Supervised` reads them."""
        return "labelled" if self.reads == "films" else "features"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.supervised.grid

    @property
    def encoder(self) -> EncoderConfig:
        """What `init_from` is to fit."""
        return self.supervised.encoder

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self.supervised.make_head(rngs=nnx.Rngs(0))))[0]

    def init(self, key: Key[Array, ""]) -> Params:
        """Make the parameters, float32: the head's as `Supervised` draws them, for each member."""
        params = self.supervised.init(key)
        if self.reads != "films":
            params = {"head": params["head"]}
        if self.members is not None:
            many = self.members
            repeat = lambda p: jnp.broadcast_to(p[None], (many, *p.shape))  # noqa: E731
            params["head"] = jax.tree.map(repeat, params["head"])
        return params

    def start(self, params: Params) -> Params:
        """Keep no average."""
        return {}

    def prepare(self, batch: Batch, rng_key: Key[Array, ""], step: Array) -> Prepared:
        """Read the labels, and draw dropout, the same for every member."""
        return self.supervised.prepare(batch, rng_key, step)

    def _features(self, params: Params, batch: Batch) -> Features:
        """Encode films, or join what was stored of them."""
        if self.reads == "films":
            return self.supervised.model(params, {}).features(batch)
        return stored(batch, grid=self.grid, dtype=self.supervised.compute_dtype)

    def logits(
        self, head: Params, features: Features, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b c"]:
        """Run one head."""
        return nnx.merge(self._graph, head)(features, keys=keys)["logits"]

    def _each(self, params: Params, of_one: Any) -> Any:
        """Call `of_one(head)`, or with members for each of them at once."""
        if self.members is None:
            return of_one(params["head"])
        return jax.vmap(of_one)(params["head"])

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: Array,
        step: Array,
    ) -> LossOut:
        """Sum the loss of the known findings, for each member."""
        params, s = merge(params, frozen), self.supervised
        features = self._features(params, batch)

        def of_one(head: Params) -> Float[Array, ""]:
            return losses.loss(
                s.criterion,
                logits=self.logits(head, features, batch["head_keys"]),
                labels=batch["labels"],
                known=batch["known"],
                class_stats=s.stats(),
            ).sum()

        with jax.named_scope("head"):
            error = self._each(params, of_one)
        return LossOut(totals={"classification": error}, metrics={}, extra=extra)

    def after_update(self, params: Params, extra: Params, step: Array) -> Params:
        """Keep no average."""
        return extra

    def members_logits(
        self, params: Params, frozen: Params, extra: Params, batch: Batch, rng_key: Array
    ) -> dict[str, Array]:
        """Return `logits` float32 [b m c] of every member."""
        params = merge(params, frozen)
        features = self._features(params, batch)
        logits = self._each(params, lambda head: self.logits(head, features))
        return {"logits": logits.swapaxes(0, 1)}

    def predict_fns(self):
        """Return the one prediction: `members`."""
        return {"members": self.members_logits}


def stored(batch: Batch, *, grid: tuple[int, int], dtype: str) -> Features:
    """Join `pooled` [b l 2 d] and, if there are, `patches` [b l n d] with `valid` to features.

    Without patches the mean patch of each block is its only one, so that a mean over them is it.
    """
    pooled, valid = batch["pooled"], batch.get("valid")
    patches = batch["patches"].astype(dtype) if "patches" in batch else pooled[:, :, 1:]
    layers = tuple((pooled[:, i, 0], patches[:, i]) for i in range(pooled.shape[1]))
    b, n = layers[-1][1].shape[:2]
    ids = jnp.broadcast_to(jnp.arange(n)[None], (b, n))
    return Features(*layers[-1], ids=ids, grid=grid, layers=layers, valid=valid)


def encode(
    supervised: Supervised, params: Params, batch: Batch, *, patches: bool
) -> dict[str, Array]:
    """Return what `stored` joins: `pooled` float32, and with `patches` these in float16."""
    features = supervised.model(params, {}).features(batch)
    valid = batch["valid"]
    pooled = [
        jnp.stack([cls.astype(jnp.float32), mean(jnp.where(valid[:, :, None], each, 0), valid)], 1)
        for cls, each in features.layers
    ]
    out = {"pooled": jnp.stack(pooled, axis=1)}  # b l 2 d
    if patches:
        stack = jnp.stack([each for _, each in features.layers], axis=1)
        out |= {"patches": stack.astype(jnp.float16), "valid": valid}
    return out


def fold(
    supervised: Supervised,
    head: Params,
    mean: Float[np.ndarray, "l 2 d"],
    deviation: Float[np.ndarray, "l 2 d"],
) -> Params:
    """Return the linear head that reads features as they are, of one that read standardised ones.

    W (x - mean) / deviation + b is (W / deviation) x + (b - W mean / deviation), in float64.
    """
    probe = Probe(supervised, "pooled", None)
    model = probe.supervised.make_head(rngs=nnx.Rngs(0))

    def pooled(x: np.ndarray) -> np.ndarray:
        features = stored({"pooled": jnp.asarray(x)[None]}, grid=(1, 1), dtype="float32")
        return np.asarray(model.pooled(features)[0], np.float64)  # d

    kernel = np.asarray(head["out"]["kernel"], np.float64) / pooled(deviation)[:, None]  # d c
    bias = np.asarray(head["out"]["bias"], np.float64) - pooled(mean) @ kernel
    return {"out": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}
