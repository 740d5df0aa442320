"""Area under the ROC curve and average precision, of films that may count several times.

AUROC is the chance that a film with the finding has a higher score than one without it, ties
counting half. Average precision is the step-wise sum of precision times gain in recall over
falling thresholds (no interpolation), as `sklearn.metrics.average_precision_score` has it. Both are
NaN where one side is empty.

Scores are sorted once; a bootstrap replicate then is a vector of counts, and both numbers come from
one cumulative sum of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64


class Ranked(NamedTuple):
    """Films of one finding, the highest score first."""

    patients: Int64[np.ndarray, " n"]
    """Number of each film's patient."""
    positives: Int64[np.ndarray, " p"]
    """Places of the films with the finding."""
    starts: Int64[np.ndarray, " g"]
    """Of each group of equal scores that holds positives: how many films stand above it,"""
    ends: Int64[np.ndarray, " g"]
    """and how many down to its end;"""
    last: Int64[np.ndarray, " g"]
    """and how many positives down to its end."""


def rank(
    scores: Float64[np.ndarray, " n"],
    labels: Bool[np.ndarray, " n"],
    patients: Int[np.ndarray, " n"] | None = None,
) -> Ranked:
    """Sort films by falling score; without `patients` each film is one of its own."""
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    edges = np.flatnonzero(np.diff(scores)) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(scores)]
    above = np.r_[0, np.cumsum(labels)]
    holds = above[ends] > above[starts]
    return Ranked(
        patients=order if patients is None else np.asarray(patients, np.int64)[order],
        positives=np.flatnonzero(labels),
        starts=starts[holds],
        ends=ends[holds],
        last=above[ends][holds],
    )


def scores_of(
    ranked: Ranked, weights: Int[np.ndarray, "r n"]
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, " r"]]:
    """Return (AUROC, average precision) where film i, in `ranked`'s order, counts weights[:, i]."""
    rows, films = weights.shape
    if not len(ranked.positives):
        return np.full(rows, np.nan), np.full(rows, np.nan)
    total = np.zeros((rows, films + 1), np.int64)
    np.cumsum(weights, axis=1, out=total[:, 1:])
    found = np.cumsum(weights[:, ranked.positives], axis=1, dtype=np.int64)[:, ranked.last - 1]
    gain = np.diff(found, axis=1, prepend=0).astype(np.float64)
    ends = total[:, ranked.ends]
    wrong = total[:, ranked.starts] + ends - 2 * found + gain  # negatives above plus down to here
    positive = found[:, -1].astype(np.float64)
    negative = total[:, -1] - positive
    one_sided = (positive == 0) | (negative == 0)
    pairs = np.where(one_sided, np.nan, positive * negative)
    auroc = 1 - (gain * wrong).sum(axis=1) / (2 * pairs)
    precision = found / np.maximum(ends, 1)
    average = (gain * precision).sum(axis=1) / np.where(one_sided, np.nan, positive)
    return auroc, average


def point(ranked: Ranked) -> tuple[float | None, float | None]:
    """Return (AUROC, average precision), None where one side is empty."""
    (auroc,), (average,) = scores_of(ranked, np.ones((1, len(ranked.patients)), np.int64))
    return (None, None) if np.isnan(auroc) else (float(auroc), float(average))
