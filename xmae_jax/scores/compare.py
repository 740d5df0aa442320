"""Two sets of predictions on the films that both have: paired differences and their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmae_jax.scores import bootstrap, delong
from xmae_jax.scores.predictions import Predictions, PredictionsError
from xmae_jax.scores.rankings import NAMES, Rankings


def compare(first: Predictions, second: Predictions, split: str) -> dict[str, Any]:
    """Score two models on the films of `split` that both have, by the findings that both have.

    A difference is first minus second; patients are drawn once for both. Raises PredictionsError
    where there is nothing in common, an id stands for several films, or labels differ.
    """
    one, other = first.of_split(split), second.of_split(split)
    total = len(one.films), len(other.films)
    findings = tuple(name for name in one.findings if name in other.findings)
    rows = _common(one, other)
    if not len(rows) or not findings:
        raise PredictionsError(f"the two have no film and finding of split {split!r} in common")
    one, other = _only(one.take(rows[:, 0]), findings), _only(other.take(rows[:, 1]), findings)
    unlike = np.argwhere(~np.isclose(one.labels, other.labels, equal_nan=True))
    if len(unlike):
        film, c = unlike[0]
        raise PredictionsError(
            f"film {one.films[film].id}, {findings[c]}: the two have different labels"
        )
    patients = one.patients()
    people = int(patients.max()) + 1
    ranks = Rankings(findings, patients=people)
    ranks.add("first", one, patients=patients)
    ranks.add("second", other, patients=patients)
    ranks.draw()
    columns = [c for c in range(len(findings)) if min(ranks.sides("first", c)) > 0]
    each = {name: _entry(ranks, [c]) for c, name in enumerate(findings)}
    for c in columns:
        known = one.known[:, c]
        each[findings[c]]["delong_p"] = _delong_p(one, other, c, known=known)
    return {
        "split": split,
        "films": len(rows),
        "patients": people,
        "films_of_each": list(total),
        "findings": each,
        "macro": _entry(ranks, columns) | {"findings": len(columns), "of": len(findings)},
        "bootstrap": {"replicates": bootstrap.REPLICATES, "seed": bootstrap.SEED},
    }


def _common(one: Predictions, other: Predictions) -> Any:
    """Return the rows [n 2] of the films that both have, in the order of the first."""
    places = []
    for predictions in (one, other):
        of: dict[tuple[str, str], int] = {}
        for row, film in enumerate(predictions.films):
            if of.setdefault((film.source, film.id), row) != row:
                raise PredictionsError(f"film {film.id} stands there twice")
        places.append(of)
    rows = [(row, places[1][key]) for key, row in places[0].items() if key in places[1]]
    return np.array(rows, np.int64).reshape(-1, 2)


def _only(predictions: Predictions, findings: tuple[str, ...]) -> Predictions:
    columns = [predictions.findings.index(name) for name in findings]
    return Predictions(
        findings,
        predictions.films,
        predictions.logits[:, columns],
        predictions.labels[:, columns],
    )


def _entry(ranks: Rankings, columns: list[int]) -> dict[str, Any]:
    """Return the mean scores of both over some findings, and the difference."""
    out: dict[str, Any] = {}
    for part in ("first", "second"):
        mean = ranks.mean(part, columns)
        out[part] = {name: mean[name] for name in NAMES}
    return {**out, "difference": ranks.difference("first", "second", columns)}


def _delong_p(one: Predictions, other: Predictions, c: int, *, known: Any) -> float | None:
    labels = one.labels[known, c] == 1
    if min(labels.sum(), (~labels).sum()) < 2:
        return None
    scores = np.stack([one.logits[known, c], other.logits[known, c]])
    return delong.p_value(*delong.covariance(scores, labels))
