"""Percentile intervals by drawing patients with replacement.

A replicate draws as many patients as there are; each brings all its films. The draws depend on the
seed and the number of patients alone, so all findings, sub-groups and compared runs share them.
Philox's raw output, not a NumPy distribution, makes the draws: NumPy may change the latter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from xmae_jax.scores.ranking import Ranked, scores_of

REPLICATES = 1000
SEED = 0
_BLOCK = 16  # replicates at once: what they touch stays in the cache


def draws(patients: int, *, replicates: int) -> Iterator[Int64[np.ndarray, "r patients"]]:
    """Yield how often each patient is drawn, a block of replicates at a time."""
    bits = np.random.Philox(SEED)
    for first in range(0, replicates, _BLOCK):
        block = min(_BLOCK, replicates - first)
        raw = bits.random_raw(block * patients).reshape(block, patients)
        drawn = ((raw >> np.uint64(32)) * np.uint64(patients) >> np.uint64(32)).astype(np.int64)
        yield np.stack([np.bincount(row, minlength=patients) for row in drawn])


def replicate(
    ranked: Sequence[Ranked], *, patients: int, replicates: int = REPLICATES
) -> Float64[np.ndarray, "k 2 r"]:
    """Return (AUROC, average precision) of each ranking in each replicate; NaN if one-sided."""
    out = np.full((len(ranked), 2, replicates), np.nan)
    first = 0
    for counts in draws(patients, replicates=replicates):
        for k, one in enumerate(ranked):
            out[k, :, first : first + len(counts)] = scores_of(
                one, np.take(counts, one.patients, axis=1)
            )
        first += len(counts)
    return out


def interval(values: Float64[np.ndarray, " r"]) -> list[float] | None:
    """Return the central 95 % of the replicates that are not NaN; None if there are none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def mean_of_defined(values: Float64[np.ndarray, "k r"]) -> Float64[np.ndarray, " r"]:
    """Average each replicate over what is not NaN in it; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def resample_sums(
    values: Float64[np.ndarray, "n k"],
    patients: Int64[np.ndarray, " n"],
    *,
    people: int,
    replicates: int = REPLICATES,
) -> Float64[np.ndarray, "r k"]:
    """Sum k values over the films of each replicate that draws from so many people."""
    each = np.zeros((people, values.shape[1]))
    np.add.at(each, patients, values)
    return np.concatenate([counts @ each for counts in draws(people, replicates=replicates)])
