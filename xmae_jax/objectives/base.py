"""What objectives share: an NNX module split at their edge, and an average of its parameters."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from xmae_jax.optim import merge
from xmae_jax.typing import Params


class ModuleObjective:
    """The part of an objective that goes for any module; `module(objective, rngs=...)` makes it."""

    module: ClassVar[Any]
    image_size: int
    ema_decay: float | None
    """Decay of an average of the parameters, which evaluation then uses; None keeps none."""

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self.module(self, rngs=nnx.Rngs(0))))[0]

    def model(self, params: Params, frozen: Params) -> Any:
        """Make the module of trained and frozen parameters."""
        return nnx.merge(self._graph, merge(params, frozen))

    def averaged(self, params: Params, frozen: Params, extra: Params) -> Any:
        """Make the module of the averaged parameters where they are kept."""
        return self.model(extra.get("ema", params), frozen)

    def init(self, key: Key[Array, ""]) -> Params:
        """Make the parameters, float32."""
        made = self.module(self, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(made, nnx.Param))

    def start(self, params: Params) -> Params:
        """Make the average of the parameters, a copy."""
        return {} if self.ema_decay is None else {"ema": jax.tree.map(jnp.copy, params)}

    def after_update(self, params: Params, extra: Params, step: Array) -> Params:
        """Move the average of the parameters."""
        if self.ema_decay is None:
            return extra
        return {"ema": ema_update(extra["ema"], params, decay=self.ema_decay, step=step)}


def grid_of(image_size: int, patch_size: int) -> tuple[int, int]:
    """Return the patches along height and width; ValueError if they do not fit."""
    if image_size % patch_size:
        raise ValueError(
            f"image_size {image_size} is no multiple of encoder.patch_size {patch_size}"
        )
    return image_size // patch_size, image_size // patch_size


def ema_update(average: Params, params: Params, *, decay: float, step: Array) -> Params:
    """Move a float32 average towards `params`; early steps use (1 + t) / (10 + t) where smaller.

    The warm-up is that of TensorFlow's ExponentialMovingAverage(num_updates).
    """
    t = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
