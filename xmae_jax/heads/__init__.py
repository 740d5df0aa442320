"""Heads by the kind that a config gives: Features in, a dict of named arrays out."""

from typing import Annotated

import jax.numpy as jnp
import pydantic
from flax import nnx

from xmae_jax.heads.attentive import AttentiveConfig, AttentiveHead
from xmae_jax.heads.linear import LinearConfig, LinearHead
from xmae_jax.heads.query import QueryConfig, QueryHead

HeadConfig = Annotated[LinearConfig | AttentiveConfig | QueryConfig, pydantic.Discriminator("kind")]
_HEADS = {LinearConfig: LinearHead, AttentiveConfig: AttentiveHead, QueryConfig: QueryHead}


def make_head(
    config: HeadConfig,
    *,
    width: int,
    findings: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    names: tuple[str, ...] = (),
) -> nnx.Module:
    """Make a head for an encoder of `width`, with a logit for each of `findings`.

    dtype: of matrix products over patches; the rest is float32. names: of the findings in order,
    by which text queries find their rows.
    """
    extra = {"names": names} if isinstance(config, QueryConfig) else {}
    return _HEADS[type(config)](
        config, width=width, findings=findings, dtype=dtype, rngs=rngs, **extra
    )
