"""The curves of a page: ROC and precision-recall, of as many points as can be told apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

_POINTS = 160


def roc(
    scores: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, "m 2"]:
    """Return (false positive rate, sensitivity) from the highest threshold to the lowest."""
    found, wrong = _counts(scores, labels)
    points = np.stack([wrong / wrong[-1], found / found[-1]], axis=1)
    return thinned(np.concatenate([np.zeros((1, 2)), points]))


def precision_recall(
    scores: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, "m 2"]:
    """Return (recall, precision) from the highest threshold down to that which finds all."""
    found, wrong = _counts(scores, labels)
    points = np.stack([found / found[-1], found / (found + wrong)], axis=1)
    last = int(np.argmax(found == found[-1]))
    points = points[: last + 1]
    return thinned(np.concatenate([[[0.0, points[0, 1]]], points]))


def _counts(
    scores: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " g"], Float64[np.ndarray, " g"]]:
    """Count films with and without the finding down to each score; both sides have some."""
    order = np.argsort(-scores, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    found = np.cumsum(labels[order])[ends].astype(np.float64)
    return found, ends + 1 - found


def thinned(points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    """Keep some points at even distances along the curve, and both ends."""
    if len(points) <= _POINTS:
        return points
    length = np.r_[0.0, np.abs(np.diff(points, axis=0)).sum(axis=1).cumsum()]
    wanted = np.linspace(0, length[-1], _POINTS)
    kept = np.unique(np.r_[np.searchsorted(length, wanted).clip(max=len(points) - 1)])
    return points[np.unique(np.r_[0, kept, len(points) - 1])]
