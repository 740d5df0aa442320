"""All scores of one split, as the nested dict of `metrics.json`; docs/scores.md says what each is.

Thresholds and temperatures come from the films of the split "val", all else from the scored one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import expit

from xmae_jax.scores import bootstrap, calibration, decisions, delong, groups
from xmae_jax.scores.predictions import Predictions
from xmae_jax.scores.rankings import Rankings

CHOSEN_ON = "val"
Entry = dict[str, Any]


class _Column(NamedTuple):
    """Logits and labels of the films of which a finding is known."""

    logits: Float64[np.ndarray, " n"]
    labels: Bool[np.ndarray, " n"]


def summarise(
    predictions: Predictions, split: str, *, train_positive: Shaped[np.ndarray, " c"] | None = None
) -> Entry:
    """Score the films of `split`; without `train_positive` findings are not put into groups."""
    scored, chosen_on = predictions.of_split(split), predictions.of_split(CHOSEN_ON)
    patients, (studies, by_view) = scored.patients(), groups.by_study(scored)
    people = int(patients.max(initial=-1)) + 1
    ranks = Rankings(scored.findings, patients=people)
    ranks.add("all", scored, patients=patients)
    if several := len(studies.films) < len(scored.films):
        ranks.add("studies", studies, patients=studies.patients())
    ranks.draw()
    parts = {name: groups.members(scored, name) for name in groups.ATTRIBUTES}
    for attribute, members in parts.items():
        for name, rows in members.items():
            ranks.add(f"{attribute} {name}", scored, patients=patients, rows=rows)
    ranks.draw(enough=groups.ENOUGH)

    findings = ranks.entries("all")
    for c, entry in enumerate(findings.values()):
        entry["n_uncertain"] = int((scored.labels[:, c] == -1).sum())
        entry["n_unknown"] = int(np.isnan(scored.labels[:, c]).sum())
        column, given = _column(scored, c), _column(chosen_on, c)
        entry["delong"] = _delong(column, entry["auroc"])
        known = patients[scored.known[:, c]]
        entry["threshold"] = _threshold(column, known, people=people, given=given)
        entry["calibration"] = _calibration(column, given=given)
        if train_positive is not None:
            entry["train_positive"] = int(train_positive[c])
            entry["frequency"] = groups.frequency(float(train_positive[c]))
    macro = ranks.mean("all") | _mean_of_rest(findings)
    return {
        "split": split,
        "films": len(scored.films),
        "patients": people,
        "studies": len(studies.films),
        "films_without_patient": sum(not film.patient for film in scored.films),
        "macro_auroc": macro["auroc"],
        "macro_average_precision": macro["average_precision"],
        "macro": macro,
        "findings": findings,
        "by_study": _studies(ranks, by_view) if several else None,
        "frequency_groups": None if train_positive is None else _frequencies(ranks, findings),
        "subgroups": {name: _subgroups(ranks, name, parts[name]) for name in parts},
        "chosen_on": {"split": CHOSEN_ON, "films": len(chosen_on.films)},
        "bootstrap": {"replicates": bootstrap.REPLICATES, "seed": bootstrap.SEED},
    }


def _column(predictions: Predictions, c: int) -> _Column:
    known = predictions.known[:, c]
    return _Column(predictions.logits[known, c], predictions.labels[known, c] == 1)


def _delong(column: _Column, auroc: float | None) -> Entry | None:
    """Return the standard error and interval that take films as independent."""
    logits, labels = column
    if auroc is None or min(labels.sum(), (~labels).sum()) < 2:
        return None
    _, ((variance,),) = delong.covariance(logits[None], labels)
    error = float(np.sqrt(variance))
    return {"standard_error": error, "interval": delong.interval(auroc, float(variance))}


def _threshold(
    column: _Column, patients: Int64[np.ndarray, " n"], *, people: int, given: _Column
) -> Entry | None:
    """Choose a threshold on the given films, and decide by it; None where none can be chosen."""
    threshold = decisions.best_threshold(*given)
    if threshold is None or not len(column[0]):
        return None
    out: Entry = {"logit": threshold, "probability": float(expit(threshold))}
    marks = decisions.outcomes(*column, threshold=threshold)
    drawn = decisions.rates(bootstrap.resample_sums(marks, patients, people=people))
    several = len(np.unique(patients)) > 1
    for name, value in decisions.rates(marks.sum(axis=0)).items():
        out[name] = None if np.isnan(value) else float(value)
        told = several and not np.isnan(value)
        out[f"{name}_interval"] = bootstrap.interval(drawn[name]) if told else None
    return out


def _calibration(column: _Column, *, given: _Column) -> Entry | None:
    """Measure probabilities as they are, and by the temperature of the given films."""
    logits, labels = column
    if not len(logits):
        return None
    warmth = calibration.temperature(*given)
    scaled = None if warmth is None else calibration.quality(logits / warmth, labels)
    return {**calibration.quality(logits, labels), "temperature": warmth, "scaled": scaled}


def _mean_of_rest(findings: Mapping[str, Entry]) -> Entry:
    """Average what comes of thresholds and probabilities, each over the findings that have it."""
    calibrated = [entry["calibration"] for entry in findings.values()]
    kinds = {
        "threshold": [entry["threshold"] for entry in findings.values()],
        "calibration": calibrated,
        "scaled": [one and one["scaled"] for one in calibrated],
    }
    out: Entry = {}
    for kind, each in kinds.items():
        out[kind] = {}
        for name in decisions.RATES if kind == "threshold" else calibration.NAMES:
            values = [one[name] for one in each if one and one[name] is not None]
            out[kind][name] = float(np.mean(values)) if values else None
            out[kind][f"{name}_findings"] = len(values)
    return out


def _studies(ranks: Rankings, by_view: Int64[np.ndarray, "s 2"]) -> Entry:
    """Score studies, and count those with a frontal and another film."""
    return {
        **ranks.mean("studies"),
        "two_views": int((by_view > 0).all(axis=1).sum()),
        "each": ranks.entries("studies"),
    }


def _frequencies(ranks: Rankings, findings: Mapping[str, Entry]) -> Entry:
    """Average over the findings that training has often, sometimes and seldom."""
    out: Entry = {"rule": groups.FREQUENCY_RULE}
    for name in ("head", "medium", "tail"):
        among = [c for c, e in enumerate(findings.values()) if e["frequency"] == name]
        out[name] = ranks.mean("all", among) | {"names": [ranks.findings[c] for c in among]}
    return out


def _subgroups(
    ranks: Rankings, attribute: str, members: Mapping[str, Bool[np.ndarray, " n"]]
) -> Entry:
    """Score each group, and compare those that have enough films of a finding."""
    part = {name: f"{attribute} {name}" for name in members}
    known = [name for name in members if name != groups.UNKNOWN]
    columns = range(len(ranks.findings))
    large = {
        c: [n for n in known if min(ranks.sides(part[n], c)) >= groups.ENOUGH] for c in columns
    }
    compared = [n for n in known if any(n in names for names in large.values())]
    common = [c for c in columns if len(compared) > 1 and large[c] == compared]
    gaps = {
        ranks.findings[c]: _gap(ranks, attribute, names, [c])
        for c, names in large.items()
        if len(names) > 1
    }
    if common:
        gaps["mean"] = _gap(ranks, attribute, compared, common)
    return {
        "groups": {
            name: {
                "films": int(rows.sum()),
                "mean": ranks.mean(part[name], common) if name in compared else None,
                "findings": ranks.entries(part[name]),
            }
            for name, rows in members.items()
        },
        "common_findings": [ranks.findings[c] for c in common],
        "gaps": gaps,
    }


def _gap(ranks: Rankings, attribute: str, names: list[str], among: list[int]) -> Entry:
    """Subtract the lowest AUROC of some groups from the highest."""
    values = {name: ranks.mean(f"{attribute} {name}", among)["auroc"] for name in names}
    high, low = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    gap = ranks.difference(f"{attribute} {high}", f"{attribute} {low}", among)
    return {"highest": high, "lowest": low, "auroc": gap["auroc"],
            "auroc_interval": gap["auroc_interval"]}  # fmt: skip
