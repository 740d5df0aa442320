"""A threshold for each finding, and what comes of deciding by it.

The threshold is the score of a film of the validation split at which F1 is greatest there, the
highest of several; a film at or above it counts as having the finding. It is never chosen on the
films that are reported, except where these are the validation films themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Shaped

RATES = ("sensitivity", "specificity", "f1", "mcc", "ppv", "npv")


def best_threshold(
    scores: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> float | None:
    """Return the score at which F1 is greatest; None where one side is empty."""
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(labels[order])
    ends = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]
    f1 = 2 * found[ends] / (ends + 1 + found[-1])
    return float(ordered[ends[f1.argmax()]])


def outcomes(
    scores: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], *, threshold: float
) -> Float64[np.ndarray, "n 4"]:
    """Mark each film as true positive, false positive, false negative or true negative."""
    called = scores >= threshold
    marks = [called & labels, called & ~labels, ~called & labels, ~called & ~labels]
    return np.stack(marks, axis=1).astype(np.float64)


def rates(counts: Shaped[np.ndarray, "*s 4"]) -> dict[str, Float64[np.ndarray, " *s"]]:
    """Return sensitivity, specificity, F1, MCC, PPV and NPV of summed outcomes.

    A rate over nothing is NaN; so is MCC (Matthews 1975) where a row or column of the table is
    empty.
    """
    tp, fp, fn, tn = np.moveaxis(counts.astype(np.float64), -1, 0)
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "sensitivity": _share(tp, tp + fn),
        "specificity": _share(tn, tn + fp),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "mcc": _share(tp * tn - fp * fn, np.sqrt(margins)),
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
    }


def _share(part: Any, whole: Any) -> Any:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
