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
_NONE = np.full((2, bootstrap.REPLICATES), np.nan)  # of a finding that was not drawn


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
        replicates these are fewer. `too_few_replicates` names the findings for which there is no
        interval: it would be of another mean.
        """
        wanted = list(range(len(self.findings)) if among is None else among)
        used = [c for c in wanted if min(self.sides(part, c)) > 0]
        drawn = [self._drawn.get((part, c), _NONE) for c in used]
        out: Entry = {
            "findings": len(used),
            "of": len(wanted),
            "left_out": [self.findings[c] for c in wanted if c not in used],
            "too_few_replicates": [
                self.findings[c] for c, one in zip(used, drawn, strict=True) if not _enough(one)
            ],
        }
        points = np.array([point(self._ranked[part, c]) for c in used], np.float64)
        for i, name in enumerate(NAMES):
            out[name] = float(points[:, i].mean()) if used else None
        out |= _intervals(drawn)
        if used and not out["too_few_replicates"]:
            lacking = np.isnan(np.stack([one[0] for one in drawn])).any(axis=0)
            out["replicates_with_fewer"] = int(lacking.sum())
        return out

    def difference(self, one: str, other: str, among: Sequence[int]) -> Entry:
        """Return by how much the mean scores of `one` exceed those of `other`, and intervals.

        The means are over findings that have both sides in both.
        """
        used = [c for c in among if min(*self.sides(one, c), *self.sides(other, c)) > 0]
        means = self.mean(one, used), self.mean(other, used)
        drawn = [
            self._drawn.get((one, c), _NONE) - self._drawn.get((other, c), _NONE) for c in used
        ]
        values = {name: means[0][name] - means[1][name] if used else None for name in NAMES}
        return values | _intervals(drawn)


def _enough(drawn: Float64[np.ndarray, "2 r"]) -> bool:
    """Tell whether most replicates have both sides of a finding."""
    return bool(np.isnan(drawn[0]).mean() < 0.5)


def _intervals(drawn: Sequence[Float64[np.ndarray, "2 r"]]) -> Entry:
    """Return the intervals of the mean scores of some findings, None unless all have enough."""
    out: Entry = {f"{name}_interval": None for name in NAMES}
    if drawn and all(map(_enough, drawn)):
        for i, name in enumerate(NAMES):
            means = bootstrap.mean_of_defined(np.stack([one[i] for one in drawn]))
            out[f"{name}_interval"] = bootstrap.interval(means)
    return out
