"""The members of a grid: what each scored, and which of them is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from xmae_jax.optim import Grid
from xmae_jax.scores.ranking import point, rank

Metric = Literal["auroc", "average_precision"]


@dataclasses.dataclass(frozen=True)
class Member:
    """What became of one pair of rate and decay."""

    blr: float
    weight_decay: float
    alive: bool
    """Whether loss and gradient were finite to the end, and so are its logits."""
    auroc: float | None
    """Mean over findings; None where undefined, or not alive."""
    average_precision: float | None


def judge(
    grid: Grid,
    alive: Bool[np.ndarray, " m"],
    logits: Float[np.ndarray, "n m c"],
    labels: Float[np.ndarray, "n c"],
) -> list[Member]:
    """Score every member on the films of a split."""
    alive = alive & np.isfinite(logits).all(axis=(0, 2))
    scores = [
        macro(logits[:, i], labels) if sound else (None, None) for i, sound in enumerate(alive)
    ]
    return [
        Member(*pair, bool(sound), *score)
        for pair, sound, score in zip(grid.members, alive, scores, strict=True)
    ]


def macro(
    logits: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"]
) -> tuple[float | None, float | None]:
    """Return mean AUROC and average precision over findings that have both sides."""
    found = []
    for scores, truth in zip(logits.T, labels.T, strict=True):
        known = np.isin(truth, (0.0, 1.0))
        auroc, average = point(rank(scores[known].astype(np.float64), truth[known] == 1))
        if auroc is not None:
            found.append((auroc, average))
    if not found:
        return None, None
    means = np.mean(found, axis=0)
    return float(means[0]), float(means[1])


def best_of(members: Sequence[Member], metric: Metric) -> int | None:
    """Return the place of the best member, of equal ones the first; None if none has a score."""
    scores = [getattr(member, metric) for member in members]
    scored = [i for i, score in enumerate(scores) if score is not None]
    return max(scored, key=scores.__getitem__) if scored else None


def table(members: Sequence[Member], chosen: int, *, batch_size: int, split: str) -> str:
    """Write the members for a terminal."""

    def told(score: float | None) -> str:
        return "-" if score is None else f"{score:.4f}"

    lines = [f"  {'rate':>9} {'decay':>8}  {'AUROC':>7} {'AP':>7}  ({split}, mean of findings)"]
    for i, member in enumerate(members):
        fate = "chosen" if i == chosen else "" if member.alive else "not finite, left out"
        lines.append(
            f"  {member.blr * batch_size / 256:>9.3g} {member.weight_decay:>8.3g}"
            f"  {told(member.auroc):>7} {told(member.average_precision):>7}  {fate}".rstrip()
        )
    return "\n".join(lines)
