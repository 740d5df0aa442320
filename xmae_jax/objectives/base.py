"""What objectives share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmae_jax.typing import Params


def ema_update(average: Params, params: Params, *, decay: float, step: Array) -> Params:
    """Move a float32 average towards `params`; early steps use (1 + t) / (10 + t) where smaller.

    The warm-up is that of TensorFlow's ExponentialMovingAverage(num_updates).
    """
    t = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
