"""Do probabilities say how often a finding is there? Brier score, ECE and a temperature.

The probability is that of the finding's presence. ECE (Naeini et al. 2015) has 15 bins of equal
width, [a, b) and the last [a, 1], and weighs the distance of mean probability and frequency in
each by its films. One temperature for each finding (Guo et al. 2017,
https://arxiv.org/abs/1706.04599) divides its logits; it minimises the negative log-likelihood of
the validation films.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import minimize_scalar
from scipy.special import expit

NAMES = ("brier", "ece", "log_loss")
BINS = 15
COLDEST, HOTTEST = 0.02, 50.0
"""Bounds of a temperature; scores that separate all films would drive it to 0."""


class Reliability(NamedTuple):
    """Films by bins of their probability; NaN in a bin without films."""

    films: Int64[np.ndarray, " 15"]
    probability: Float64[np.ndarray, " 15"]
    """Mean probability."""
    frequency: Float64[np.ndarray, " 15"]
    """Share of films with the finding."""


def reliability(
    probabilities: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> Reliability:
    """Sort films into bins."""
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    films = np.bincount(bins, minlength=BINS)
    there = np.where(films > 0, films, np.nan)
    total = np.bincount(bins, probabilities, minlength=BINS)
    return Reliability(films, total / there, np.bincount(bins, labels, minlength=BINS) / there)


def expected_error(
    probabilities: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> float:
    """Return the expected calibration error (ECE)."""
    films, probability, frequency = reliability(probabilities, labels)
    return float(np.nansum(films * np.abs(probability - frequency)) / films.sum())


def log_loss(logits: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """Return the mean negative log-likelihood, in nats."""
    return float(np.logaddexp(0, np.where(labels, -logits, logits)).mean())


def quality(logits: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Return Brier score, ECE and log loss of some films."""
    probabilities = expit(logits)
    brier = float(np.mean((probabilities - labels) ** 2))
    values = brier, expected_error(probabilities, labels), log_loss(logits, labels)
    return dict(zip(NAMES, values, strict=True))


def temperature(logits: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float | None:
    """Fit the temperature of one finding; None where one side is empty."""
    if labels.all() or not labels.any():
        return None
    found = minimize_scalar(
        lambda x: log_loss(logits * np.exp(-x), labels),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))
