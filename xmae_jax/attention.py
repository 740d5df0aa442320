"""Scaled dot-product attention; the one place where its backend is chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "b n heads hd"],
    k: Float[Array, "b m heads hd"],
    v: Float[Array, "b m heads hd"],
) -> Float[Array, "b n heads hd"]:
    """Attend from every query to every key; softmax and its sums in float32.

    Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), section 3.2.1.
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)
