"""Which records a run trains on, and how often an epoch shows each of them.

Patients are put into one order by a hash of seed and patient, and a share of them, or some for each
finding, is the beginning of that order: the patients of 1 % are among those of 10 %, those of 4
shots among those of 16. Everything is a pure function of the seed and the index.

Balanced sampling is the repeat-factor sampling of LVIS (Gupta, Dollar and Girshick 2019, section
4.2, https://arxiv.org/abs/1908.03195): a finding that a share f of the films has asks for
r = max(1, sqrt(threshold / f)) showings of each, and a film is shown as often as the finding of it
that asks for most. Differs from the reference in that the fractions are rounded once and not anew
each epoch, so that an epoch is a fixed list of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

_PARTS = 1024  # of a showing, so that rounding is integer arithmetic


def _order(patients: Sequence[str], seed: int) -> tuple[list[str], Int[np.ndarray, " n"]]:
    """Return the patients in the order of the seed, and the place in it of each film's patient."""
    ordered = sorted(
        set(patients), key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    )
    places = {name: place for place, name in enumerate(ordered)}
    return ordered, np.array([places[name] for name in patients], np.int64)


def share_of_patients(
    patients: Sequence[str], share: float, *, seed: int
) -> Bool[np.ndarray, " n"]:
    """Tell which films are of a share of the patients, in (0, 1], but of one at least.

    patients: of each film.
    """
    ordered, place = _order(patients, seed)
    return place < max(1, round(share * len(ordered)))


def few_shots(
    patients: Sequence[str], labels: Float[np.ndarray, "n c"], shots: int, *, seed: int
) -> Bool[np.ndarray, " n"]:
    """Tell which films are of `shots` positive and `shots` negative patients for each finding.

    A patient is positive for a finding that one of their films has, and negative if one is known
    not to have it and none has or may have it. All films of a patient are taken, so a finding may
    get more patients by way of others; it gets fewer where there are fewer. labels: as in records.
    """
    ordered, place = _order(patients, seed)
    chosen = np.zeros(len(ordered), bool)
    for finding in labels.T:
        maybe, absent, present = (np.zeros(len(ordered), bool) for _ in range(3))
        maybe[place[finding == -1]] = True
        absent[place[finding == 0]] = True
        present[place[finding == 1]] = True
        for patient in (present, absent & ~present & ~maybe):
            chosen[np.flatnonzero(patient)[:shots]] = True
    return chosen[place]


def repeats(labels: Float[np.ndarray, "n c"], threshold: float) -> Int[np.ndarray, " n"]:
    """Count how often an epoch is to show each film, 1 at least; labels as in records.

    threshold: findings of a smaller share of the films are shown more often. What is left of a
    showing is carried to the next film, so the sum over any run of films is right to within one.
    """
    present = labels == 1
    films = np.maximum(present.sum(axis=0), 1)
    factor = np.maximum(1.0, np.sqrt(threshold * len(labels) / films))  # c
    parts = np.floor(factor * _PARTS + 0.5).astype(np.int64)
    each = np.where(present, parts, _PARTS).max(axis=1, initial=_PARTS)  # n
    shown = np.cumsum(each) // _PARTS
    return np.diff(shown, prepend=0)


def rows_digest(digest: str, rows: Int[np.ndarray, " n"]) -> str:
    """Name the rows of an epoch of a source, of which `digest` names the records."""
    return hashlib.sha256(digest.encode() + rows.astype("<i8").tobytes()).hexdigest()
