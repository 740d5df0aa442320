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

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.index import Entry, label_matrix

Part = Literal["train", "val", "test"]
Rows = tuple[Int[np.ndarray, " _"], ...]
"""Of each source: indices of its records, in order, some perhaps several times."""

_PARTS = 1024  # of a showing, so that rounding is integer arithmetic


@dataclasses.dataclass(frozen=True)
class Subset:
    """What a run uses of its data."""

    seed: int
    label_fraction: float
    """Share of the training patients."""
    shots: int | None
    """Positive, and negative, training patients for each finding; None takes all."""
    leave_out_source: str | None
    """`source` of records that are neither trained nor chosen on, and tested on alone."""
    balance: float | None
    """Share of films below which a finding's films are repeated; None repeats none."""
    findings: tuple[str, ...]
    """What shots and balance go by."""

    def touches(self, part: Part) -> bool:
        """Tell whether a part of the data is not simply every record once."""
        trained = self.few or self.balance is not None
        return self.leave_out_source is not None or (part == "train" and trained)

    @property
    def few(self) -> bool:
        """Tell whether fewer training patients are asked for than there are."""
        return self.label_fraction < 1 or self.shots is not None

    def rows(self, entries: Sequence[Sequence[Entry]], part: Part) -> Rows:
        """Return the rows of an epoch of each source.

        entries: of the records of each source, in their order. Raises ValueError, naming the key
        of `config.data`, if nothing is left.
        """
        ends = np.cumsum([len(of_source) for of_source in entries])
        whole = [entry for of_source in entries for entry in of_source]
        kept = self._of_sources(whole, part)
        if part == "train":
            kept = self._trained(whole, kept)
        return tuple(
            kept[(kept >= end - len(of)) & (kept < end)] - (end - len(of))
            for of, end in zip(entries, ends, strict=True)
        )

    def _of_sources(self, entries: Sequence[Entry], part: Part) -> Int[np.ndarray, " k"]:
        """Leave a source out, or everything else."""
        if self.leave_out_source is None:
            return np.arange(len(entries))
        left_out = np.array([entry.source == self.leave_out_source for entry in entries])
        kept = np.flatnonzero(left_out == (part == "test"))
        if not len(kept) or (part == "train" and not left_out.any()):
            there = ", ".join(sorted({entry.source for entry in entries}))
            only = " is the only one, so nothing is left" if left_out.all() else " is none of them"
            raise ValueError(
                f"leave_out_source: {self.leave_out_source!r}{only}; sources of the {part} films:"
                f" {there}"
            )
        return kept

    def _trained(
        self, entries: Sequence[Entry], kept: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, " r"]:
        """Take the patients that are asked for, and repeat films with rare findings."""
        patients = [entries[i].patient for i in kept]
        if self.label_fraction < 1:
            kept = kept[share_of_patients(patients, self.label_fraction, seed=self.seed)]
        elif self.shots is not None:
            labels = self.labels([entries[i] for i in kept])
            kept = kept[few_shots(patients, labels, self.shots, seed=self.seed)]
            if not len(kept):
                raise ValueError("shots: no training film has a known label of the findings")
        if self.balance is not None:
            kept = np.repeat(kept, repeats(self.labels([entries[i] for i in kept]), self.balance))
        return kept

    def labels(self, entries: Sequence[Entry]) -> Float[np.ndarray, "n c"]:
        """Return what is known of the findings."""
        return label_matrix(entries)[:, [FINDINGS.index(name) for name in self.findings]]

    def describe(self, entries: Sequence[Sequence[Entry]], rows: Rows, *, unit: str) -> str:
        """Tell how many films or studies, as `unit` says, and patients are trained on.

        And how many of each finding.
        """
        whole = [entry for of_source in entries for entry in of_source]
        drawn = [of[i] for of, chosen in zip(entries, rows, strict=True) for i in chosen]
        used = [of[i] for of, chosen in zip(entries, rows, strict=True) for i in np.unique(chosen)]
        counts = [(len(of), len({entry.patient for entry in of})) for of in (used, whole)]
        (films, patients), (all_films, all_patients) = counts
        text = (
            f"training on {films:,} of {all_films:,} {unit}, {patients:,} of {all_patients:,}"
            f" patients; {len(drawn):,} rows an epoch"
        )
        if not self.findings:
            return text
        lines = [text, f"  {'finding':<28} {'positive':>8} {'negative':>8} {'rows with it':>12}"]
        of_film, of_row = self.labels(used), self.labels(drawn)
        for c, name in enumerate(self.findings):
            numbers = [(of_film[:, c] == 1).sum(), (of_film[:, c] == 0).sum()]
            lines.append(
                f"  {name:<28} {numbers[0]:>8,} {numbers[1]:>8,} {(of_row[:, c] == 1).sum():>12,}"
            )
        return "\n".join(lines)


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
