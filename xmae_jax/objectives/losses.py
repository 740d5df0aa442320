"""Losses of many findings at once, and what an uncertain or unknown label becomes.

Each loss is two curves of the logit, the loss of a positive and that of a negative; a label y in
[0, 1] takes y of the one and 1 - y of the other. Each finding is a question of its own: losses that
were published for one class out of many are read as one for "present" against "absent", and say so.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float

Uncertain = Literal["ignore", "zeros", "ones", "smoothed"]
"""What CheXpert's "uncertain" becomes (Irvin et al., arXiv 1901.07031, section 3): unknown, a
negative, a positive, or 0.7."""
_UNCERTAIN = {"zeros": 0.0, "ones": 1.0, "smoothed": 0.7}
"""Pham et al. (arXiv 1911.06475, section 3.3, U-Ones+LSR) draw it from U(0.55, 0.85). Every loss
here is linear in the label, so the mean of that gives the same loss on average, each time alike."""


class ClassStats(NamedTuple):
    """Counts of each finding in the training split, as training counts labels."""

    positive: Float[Array, " c"]
    known: Float[Array, " c"]


Curves = tuple[Float[Array, "b c"], Float[Array, "b c"]]
"""The loss of a positive and of a negative."""


def targets(
    labels: Float[Array, "b c"], *, uncertain: Uncertain
) -> tuple[Float[Array, "b c"], Bool[Array, "b c"]]:
    """Return (labels in [0, 1], which of them are known) from 1, 0, -1 uncertain, NaN unknown."""
    unsure = labels < 0
    known = ~jnp.isnan(labels)
    if uncertain == "ignore":
        known &= ~unsure
    else:
        labels = jnp.where(unsure, _UNCERTAIN[uncertain], labels)
    return jnp.where(known, labels, 0.0).astype(jnp.float32), known


def stats_of(
    positive: Float[Array, " c"],
    known: Float[Array, " c"],
    unsure: Float[Array, " c"],
    *,
    uncertain: Uncertain,
) -> ClassStats:
    """Count films as `targets` reads them: certain ones, and `unsure` by what they become."""
    if uncertain == "ignore":
        return ClassStats(positive, known)
    return ClassStats(positive + _UNCERTAIN[uncertain] * unsure, known + unsure)


def _counts(stats: ClassStats) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Return positives and negatives of each finding, at least 1: none seen is no zero weight."""
    return jnp.maximum(stats.positive, 1.0), jnp.maximum(stats.known - stats.positive, 1.0)


def _check_gamma(**gammas: float) -> None:
    for name, gamma in gammas.items():
        if gamma < 0:
            raise ValueError(f"{name} must not be negative, got {gamma}")


@dataclasses.dataclass(frozen=True)
class Bce:
    """Binary cross-entropy."""

    kind: Literal["bce"]

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        return jax.nn.softplus(-z), jax.nn.softplus(z)


@dataclasses.dataclass(frozen=True)
class WeightedBce:
    """Binary cross-entropy with weights by how frequent a finding is.

    "ratio": a positive weighs negatives / positives, clipped to [0.1, 10] as in LTCXNet (Huang et
    al., arXiv 2411.10746). "exponential": a positive weighs exp(1 - p), a negative exp(p), where p
    is the share of positives, as in the released code of Wang et al. (arXiv 2404.17926).
    """

    kind: Literal["weighted_bce"]
    weights: Literal["ratio", "exponential"]

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        if self.weights == "ratio":
            positives, negatives = _counts(stats)
            return _weigh(z, jnp.clip(negatives / positives, 0.1, 10.0), jnp.ones_like(positives))
        share = stats.positive / jnp.maximum(stats.known, 1.0)
        return _weigh(z, jnp.exp(1.0 - share), jnp.exp(share))


@dataclasses.dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al., arXiv 1708.02002, section 3.2), without its alpha.

    The power of a probability is taken of its logarithm, whose gradient stays finite.
    """

    kind: Literal["focal"]
    gamma: float

    def __post_init__(self) -> None:
        _check_gamma(gamma=self.gamma)

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        absent, present = jax.nn.softplus(z), jax.nn.softplus(-z)  # -log(1 - p), -log p
        return jnp.exp(-self.gamma * absent) * present, jnp.exp(-self.gamma * present) * absent


@dataclasses.dataclass(frozen=True)
class Asymmetric:
    """Asymmetric loss (Ridnik et al., arXiv 2009.14119, section 2): negatives are focused more.

    A negative's probability is lowered by `clip` first, and at 0 it has no loss. The gradient is
    that of the whole, as in the paper; the authors' code may hold the focusing weights constant.
    """

    kind: Literal["asymmetric"]
    gamma_negative: float
    gamma_positive: float
    clip: float

    def __post_init__(self) -> None:
        _check_gamma(gamma_negative=self.gamma_negative, gamma_positive=self.gamma_positive)
        if not 0 <= self.clip < 1:
            raise ValueError(f"clip must lie in [0, 1), got {self.clip}")

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        absent, present = jax.nn.softplus(z), jax.nn.softplus(-z)  # -log(1 - p), -log p
        positive = jnp.exp(-self.gamma_positive * absent) * present
        if self.clip == 0.0:
            return positive, jnp.exp(-self.gamma_negative * present) * absent
        shifted = jax.nn.sigmoid(z) - self.clip
        counts = shifted > 0
        shifted = jnp.where(counts, shifted, 0.5)  # any value whose power has a gradient
        # 1 - p + clip as a sum: at large logits 1 - p is lost in a difference.
        negative = -(shifted**self.gamma_negative) * jnp.log(jax.nn.sigmoid(-z) + self.clip)
        return positive, jnp.where(counts, negative, 0.0)


@dataclasses.dataclass(frozen=True)
class ClassBalanced:
    """Binary cross-entropy weighted by effective numbers (Cui et al., arXiv 1901.05555, section 3).

    A class of n examples weighs (1 - beta) / (1 - beta^n). The paper's classes exclude each other;
    here present and absent are the two classes of each finding, and their weights sum to 2.
    """

    kind: Literal["class_balanced"]
    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}")

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        log_beta = math.log(self.beta) if self.beta else -math.inf
        # 1 - beta^n without the difference, which float32 would lose at beta near 1.
        positives, negatives = (-jnp.expm1(n * log_beta) for n in _counts(stats))
        total = positives + negatives
        return _weigh(z, 2.0 * negatives / total, 2.0 * positives / total)


@dataclasses.dataclass(frozen=True)
class LogitAdjusted:
    """Binary cross-entropy of a logit moved by the prior (Menon et al., arXiv 2007.07314, eq. 10).

    The paper adds tau log(prior) to each logit of a softmax over classes. Present and absent with
    logits (z, 0) are such a softmax, so z moves by tau log(positives / negatives), in training
    alone: a finding's rarity is taken out of z, which ranks as before but is no log-odds at the
    data's own prevalence until it is calibrated.
    """

    kind: Literal["logit_adjusted"]
    tau: float

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau must be positive, got {self.tau}")

    def curves(self, z: Float[Array, "b c"], stats: ClassStats) -> Curves:
        """Return the loss of a positive and of a negative at logits z."""
        positives, negatives = _counts(stats)
        moved = z + (self.tau * jnp.log(positives / negatives))[None]
        return jax.nn.softplus(-moved), jax.nn.softplus(moved)


def _weigh(z: Float[Array, "b c"], positive: Array, negative: Array) -> Curves:
    """Weigh cross-entropy by finding."""
    return positive[None] * jax.nn.softplus(-z), negative[None] * jax.nn.softplus(z)


LossConfig = Annotated[
    Bce | WeightedBce | Focal | Asymmetric | ClassBalanced | LogitAdjusted,
    pydantic.Discriminator("kind"),
]


def loss(
    config: LossConfig,
    *,
    logits: Float[Array, "b c"],
    labels: Float[Array, "b c"],
    known: Bool[Array, "b c"],
    class_stats: ClassStats,
) -> Float[Array, "b c"]:
    """Return each label's loss, float32; where not known it is 0, and so is its gradient.

    Unknown places are left out at the input, so that not even NaN or infinity gets through.
    """
    z = jnp.where(known, logits.astype(jnp.float32), 0.0)
    positive, negative = config.curves(z, class_stats)
    return jnp.where(known, labels * positive + (1.0 - labels) * negative, 0.0)
