"""AUROC and average precision of many parts of the same films, with all intervals in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from xmae_jax.scores import bootstrap
from xmae_jax.scores.predictions import Predictions
from xmae_jax.scores.ranking import Ranked, point, rank

NAMES = ("auroc", "average_precision")
Entry = dict[str, Any]


class Rankings:
    """Every finding of every part that was added, ranked and then resampled by patients."""

    def __init__(self, findings: Sequence[str], *, patients: int):
        self.findings, self.patients = tuple(findings), patients
        self._ranked: dict[tuple[str, int], Ranked] = {}
        self._drawn: dict[tuple[str, int], Float64[np.ndarray, "2 r"]] = {}

    def add(
        self,
        part: str,
        predictions: Predictions,
        *,
        patients: Int64[np.ndarray, " n"],
        rows: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        """Rank a part of some films; `patients` numbers those of all parts alike."""
        for c in range(len(self.findings)):
            use = predictions.known[:, c] if rows is None else predictions.known[:, c] & rows
            labels = predictions.labels[use, c] == 1
            self._ranked[part, c] = rank(predictions.logits[use, c], labels, patients[use])

    def draw(self, *, enough: int = 1) -> None:
        """Resample what was not yet, has `enough` films on each side, and several patients."""
        keys = [
            key
            for key, one in self._ranked.items()
            if key not in self._drawn
            and min(self.sides(*key)) >= enough
            and len(np.unique(one.patients)) > 1
        ]
        drawn = bootstrap.replicate([self._ranked[k] for k in keys], patients=self.patients)
        self._drawn |= dict(zip(keys, drawn, strict=True))

    def sides(self, part: str, c: int) -> tuple[int, int]:
        """Return how many films have the finding, and how many do not."""
        one = self._ranked[part, c]
        return len(one.positives), len(one.patients) - len(one.positives)

    def entry(self, part: str, c: int) -> Entry:
        """Return both scores of a finding, None where undefined, and their intervals."""
        drawn = self._drawn.get((part, c))
        positive, negative = self.sides(part, c)
        out: Entry = {"n_positive": positive, "n_negative": negative}
        for i, (name, value) in enumerate(zip(NAMES, point(self._ranked[part, c]), strict=True)):
            out[name] = value
            out[f"{name}_interval"] = None if drawn is None else bootstrap.interval(drawn[i])
        if drawn is not None:
            out["one_sided_replicates"] = int(np.isnan(drawn[0]).sum())
        return out

    def entries(self, part: str) -> dict[str, Entry]:
        """Return the entry of every finding."""
        return {name: self.entry(part, c) for c, name in enumerate(self.findings)}

    def mean(self, part: str, among: Iterable[int] | None = None) -> Entry:
        """Average over findings (all, unless given) that have both sides.

        A replicate averages over those that have both sides in it; it is told in how many
        replicates these are fewer.
        """
        wanted = list(range(len(self.findings)) if among is None else among)
        used = [c for c in wanted if min(self.sides(part, c)) > 0]
        out: Entry = {
            "findings": len(used),
            "of": len(wanted),
            "left_out": [self.findings[c] for c in wanted if c not in used],
        }
        points = np.array([point(self._ranked[part, c]) for c in used], np.float64)
        drawn = [self._drawn[part, c] for c in used if (part, c) in self._drawn]
        for i, name in enumerate(NAMES):
            out[name] = float(points[:, i].mean()) if used else None
            each = [values[i] for values in drawn]
            means = bootstrap.mean_of_defined(np.stack(each)) if each else None
            out[f"{name}_interval"] = None if means is None else bootstrap.interval(means)
        if drawn:
            lacking = np.isnan(np.stack([d[0] for d in drawn])).any(axis=0)
            out["replicates_with_fewer"] = int(lacking.sum())
        return out

    def difference(self, one: str, other: str, among: Sequence[int]) -> Entry:
        """Return by how much the mean scores of `one` exceed those of `other`, and intervals."""
        means = self.mean(one, among), self.mean(other, among)
        both = [c for c in among if (one, c) in self._drawn and (other, c) in self._drawn]
        out: Entry = {}
        for i, name in enumerate(NAMES):
            a, b = (mean[name] for mean in means)
            out[name] = None if a is None or b is None else a - b
            each = [self._drawn[one, c][i] - self._drawn[other, c][i] for c in both]
            drawn = bootstrap.mean_of_defined(np.stack(each)) if each else None
            out[f"{name}_interval"] = None if drawn is None else bootstrap.interval(drawn)
        return out
