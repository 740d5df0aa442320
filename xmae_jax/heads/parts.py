"""What heads share: tokens of the last blocks, and attention whose map is seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmae_jax.typing import Features


def tokens(
    features: Features, *, layers: int
) -> tuple[Float[Array, "b ld"], Float[Array, "b k ld"]]:
    """Join the last `layers` blocks along the width, oldest first: (CLS, patches).

    Patches that are not valid become zeros here, at the input: whatever they hold, it reaches
    neither a value nor a gradient.
    """
    if len(features.layers) < layers:
        raise ValueError(f"the head reads {layers} blocks, the encoder gave {len(features.layers)}")
    cls, patches = zip(*features.layers[-layers:], strict=True)
    joined = jnp.concatenate(patches, axis=-1)  # b k ld
    if features.valid is not None:
        joined = jnp.where(features.valid[:, :, None], joined, 0)
    return jnp.concatenate(cls, axis=-1), joined


def mean(patches: Float[Array, "b k d"], valid: Bool[Array, "b k"] | None) -> Float[Array, "b d"]:
    """Average the valid patches, float32; zero where a row has none. Others are to be zeros."""
    patches = patches.astype(jnp.float32)
    if valid is None:
        return patches.mean(axis=1)
    count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1)  # b 1
    return patches.sum(axis=1) / count


def maximum(
    patches: Float[Array, "b k d"], valid: Bool[Array, "b k"] | None
) -> Float[Array, "b d"]:
    """Take each channel's largest value over the valid patches, float32; zero where none is."""
    patches = patches.astype(jnp.float32)
    if valid is None:
        return patches.max(axis=1)
    largest = jnp.where(valid[:, :, None], patches, -jnp.inf).max(axis=1)
    return jnp.where(valid.sum(axis=1, keepdims=True) > 0, largest, 0)


def attention_map(
    q: Float[Array, "b q heads hd"],
    k: Float[Array, "b k heads hd"],
    valid: Bool[Array, "b k"] | None,
) -> Float[Array, "b heads q k"]:
    """Softmax of scaled products, float32; rows sum to 1 over the valid patches.

    `xmae_jax.attention` never holds this map, and heads are asked for it. A row without a valid
    patch, which is padding, gets an even map.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if valid is not None:
        scores = jnp.where(valid[:, None, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)
