"""Means as (total, weight): added on the device, divided once on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from xmae_jax.typing import Mean


def mean_of(values: Float[Array, "*n"], weights: Shaped[Array, "*n"]) -> Mean:
    """Sum `values` under `weights`; a weight of zero drops its value even where it is NaN."""
    w = weights.astype(jnp.float32)
    return Mean(jnp.sum(jnp.where(w > 0, values * w, 0.0)), jnp.sum(w))


def add(a: dict[str, Mean], b: dict[str, Mean]) -> dict[str, Mean]:
    """Add two dicts of means, name by name."""
    return jax.tree.map(jnp.add, a, b)


def values(means: dict[str, Mean]) -> dict[str, float | None]:
    """Divide, on the host; a mean over nothing is None, never 0 or NaN."""
    return {
        name: float(m.total) / float(m.weight) if float(m.weight) > 0 else None
        for name, m in means.items()
    }
