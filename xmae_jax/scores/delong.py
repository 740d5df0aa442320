"""Variance of AUROCs and the test of their difference by DeLong, DeLong and Clarke-Pearson (1988).

The fast algorithm is that of Sun and Xu (2014), https://doi.org/10.1109/LSP.2014.2337313: the
placement values of all films come from three rankings. It takes films as independent, so where
patients have several films its intervals are too narrow, and those of the bootstrap hold.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import norm, rankdata


def covariance(
    scores: Float64[np.ndarray, "m n"], labels: Bool[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, "m m"]]:
    """Return the AUROC of each of m models on the same films, and their covariance.

    Both sides need two films at least.
    """
    positive, negative = scores[:, labels], scores[:, ~labels]
    p, n = positive.shape[1], negative.shape[1]
    together = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    below = (together[:, :p] - rankdata(positive, axis=1)) / n  # share of negatives below each
    above = 1 - (together[:, p:] - rankdata(negative, axis=1)) / p
    return below.mean(axis=1), np.atleast_2d(np.cov(below)) / p + np.atleast_2d(np.cov(above)) / n


def interval(auroc: float, variance: float) -> list[float]:
    """Return the 95 % interval of the normal approximation, within 0 and 1."""
    half = norm.ppf(0.975) * np.sqrt(variance)
    return [float(max(auroc - half, 0.0)), float(min(auroc + half, 1.0))]


def p_value(
    aurocs: Float64[np.ndarray, " 2"], variances: Float64[np.ndarray, "2 2"]
) -> float | None:
    """Return the two-sided p of equal AUROCs; None if the scores rank all pairs alike."""
    variance = variances[0, 0] + variances[1, 1] - 2 * variances[0, 1]
    if variance <= 1e-15:
        return None
    return float(2 * norm.sf(abs(aurocs[0] - aurocs[1]) / np.sqrt(variance)))
