"""A linear map of pooled tokens: the linear probe, and the head of full fine-tuning.

Of CLS, of the mean patch, or of both, from the last n blocks, as in DINOv2's linear evaluation
(Oquab et al., arXiv 2304.07193, section 7); kernel N(0, 0.01), bias 0, as there.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from xmae_jax.heads.parts import maximum, mean, tokens
from xmae_jax.typing import Features


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Settings of the linear head."""

    kind: Literal["linear"]
    pool: Literal["cls", "mean", "cls_mean", "mean_max"]
    """"cls_mean" joins the mean patch of the last block to the CLS of all; "mean_max" joins the
    mean patch and the largest value of each channel, which one small lesion can move."""
    layers: int
    """How many of the last blocks are read, joined along the width."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be positive, got {self.layers}")


def linear_out(inputs: int, findings: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Make the map from a pooled vector to logits: N(0, 0.01), bias 0, float32."""
    normal = nnx.initializers.normal(0.01)
    return nnx.Linear(inputs, findings, kernel_init=normal, dtype=jnp.float32, rngs=rngs)


class LinearHead(nnx.Module):
    """Pool, then one linear map in float32: it costs nothing beside the encoder."""

    def __init__(
        self,
        config: LinearConfig,
        *,
        width: int,
        findings: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config = config
        layers = config.layers
        blocks = {"cls": layers, "mean": layers, "cls_mean": layers + 1, "mean_max": 2 * layers}
        self.out = linear_out(blocks[config.pool] * width, findings, rngs=rngs)

    def pooled(self, features: Features) -> Float[Array, "b d"]:
        """Return what the map reads, float32: of all blocks, the oldest first."""
        cls, patches = tokens(features, layers=self.config.layers)
        if self.config.pool == "cls":
            return cls.astype(jnp.float32)
        if self.config.pool == "mean":
            return mean(patches, features.valid)
        if self.config.pool == "mean_max":
            average, largest = mean(patches, features.valid), maximum(patches, features.valid)
            return jnp.concatenate([average, largest], axis=-1)
        _, patches = tokens(features, layers=1)
        last = mean(patches, features.valid)
        return jnp.concatenate([cls.astype(jnp.float32), last], axis=-1)

    def __call__(
        self, features: Features, *, keys: Key[Array, " b"] | None = None
    ) -> dict[str, Float[Array, "b c"]]:
        """Return `logits`, float32; there is no dropout, so `keys` are of no use."""
        return {"logits": self.out(self.pooled(features))}
