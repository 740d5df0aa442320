"""Every random key of the project is made here, from (seed, purpose, step)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

PURPOSES = {"init": 0, "train": 1, "eval": 2}
"""Numbers are part of the format: a new purpose takes the next one."""


def key(seed: int, purpose: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """Make the key of one purpose at one step; `step` may be traced."""
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose]), jnp.asarray(step, jnp.uint32)
    )


def row_keys(rng: Key[Array, ""], rows: int) -> Key[Array, " b"]:
    """Make one key per row of the global batch, so that a row's draw knows no mesh."""
    return jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(rows))


def id_keys(rng: Key[Array, ""], ids: Int[Array, "b 2"]) -> Key[Array, " b"]:
    """Make one key per record, so that evaluation masks do not depend on batches or order."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(rng, i[0]), i[1]))(ids)
