"""Findings by how often training has them, and films by whom and what they show."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int64

from xmae_jax.scores.predictions import Film, Predictions

FREQUENCY_RULE = (
    "films of the training split with the finding: head more than 1,000, medium 100 to 1,000,"
    " tail fewer than 100"
)
ENOUGH = 10
"""Films with and without a finding that a sub-group needs for an AUROC to be told."""
UNKNOWN = "unknown"
AGE_BANDS = {"0-17": 18, "18-39": 40, "40-59": 60, "60-79": 80, "80+": np.inf}
"""Name of a band -> the age in years at which it ends."""
_NOT_FRONTAL = re.compile(
    r"\b(L|LL|RL|LLD|RLD|LLO|RLO|LAO|RAO|LPO|RPO|LAT\w*|OBL\w*|DECUB\w*|SWIMMER\w*|OTHER)\b"
    r"|LATERAL|(?<!AP )(?<!PA )AXIAL",
    re.IGNORECASE,
)


def frequency(train_positive: float) -> str:
    """Name the group of a finding (Holste et al. 2022, https://arxiv.org/abs/2208.13365)."""
    return "head" if train_positive > 1000 else "tail" if train_positive < 100 else "medium"


def age_band(age: float) -> str:
    """Name the band of an age in years."""
    if not age >= 0:
        return UNKNOWN
    return next(name for name, end in AGE_BANDS.items() if age < end)


ATTRIBUTES: dict[str, Callable[[Film], str]] = {
    "sex": lambda film: film.sex or UNKNOWN,
    "age": lambda film: age_band(film.age),
    "view": lambda film: film.view or UNKNOWN,
    "source": lambda film: film.source or UNKNOWN,
}
"""Name of an attribute -> the group of a film."""


def members(predictions: Predictions, attribute: str) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return which films are in each group of an attribute; the unknown ones come last."""
    names = [ATTRIBUTES[attribute](film) for film in predictions.films]
    order = sorted(set(names), key=lambda name: (name == UNKNOWN, name))
    return {name: np.array([own == name for own in names], bool) for name in order}


def is_frontal(view: str) -> bool:
    """Say whether a view is frontal: any that is not known to be another."""
    return not _NOT_FRONTAL.search(view.replace("_", " "))


def by_study(predictions: Predictions) -> tuple[Predictions, Int64[np.ndarray, "s 2"]]:
    """Join the films of each study; also return how many frontal and other films each has.

    Logits are means of the frontal and of the other films, and of these two where both are there,
    so that several films of one view do not outvote the other. A study has a finding that one of
    its films has. It is without it if that is known of a film and none is uncertain.
    """
    studies = predictions.studies()
    other = np.array([not is_frontal(film.view) for film in predictions.films], np.int64)
    films = np.zeros((int(studies.max(initial=-1)) + 1, 2), np.int64)
    np.add.at(films, (studies, other), 1)
    of_views = np.zeros((*films.shape, len(predictions.findings)))
    np.add.at(of_views, (studies, other), predictions.logits)
    of_views /= np.maximum(films, 1)[:, :, None]
    logits = of_views.sum(axis=1) / (films > 0).sum(axis=1)[:, None]
    labels = np.full(logits.shape, np.nan)
    for value in (0.0, -1.0, 1.0):  # the later prevails
        row, column = np.nonzero(predictions.labels == value)
        labels[studies[row], column] = value
    _, first = np.unique(studies, return_index=True)
    chosen = tuple(predictions.films[i] for i in first)
    return Predictions(predictions.findings, chosen, logits, labels), films
