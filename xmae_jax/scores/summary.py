"""All scores of one split, as the nested dict of `metrics.json`."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from xmae_jax.scores import bootstrap
from xmae_jax.scores.predictions import Predictions
from xmae_jax.scores.ranking import point, rank

NAMES = ("auroc", "average_precision")


def summarise(
    predictions: Predictions, split: str, *, train_positive: Shaped[np.ndarray, " c"] | None = None
) -> dict[str, Any]:
    """Score the films of `split`."""
    scored = predictions.of_split(split)
    patients, known = scored.patients(), scored.known
    ranked = [
        rank(
            scored.logits[known[:, c], c],
            scored.labels[known[:, c], c] == 1,
            patients[known[:, c]],
        )
        for c in range(len(scored.findings))
    ]
    people = len(np.unique(patients))
    drawn = bootstrap.replicate(ranked, patients=people)
    findings = {}
    for c, name in enumerate(scored.findings):
        column = scored.labels[:, c]
        findings[name] = {
            "n_positive": int((column == 1).sum()),
            "n_negative": int((column == 0).sum()),
            "n_uncertain": int((column == -1).sum()),
            "n_unknown": int(np.isnan(column).sum()),
            **_with_intervals(point(ranked[c]), drawn[c]),
        }
    macro = _macro(findings, drawn)
    return {
        "split": split,
        "films": len(scored.films),
        "patients": people,
        "studies": len(np.unique(scored.studies())),
        "macro_auroc": macro["auroc"],
        "macro_average_precision": macro["average_precision"],
        "macro": macro,
        "findings": findings,
        "bootstrap": {"unit": "patient", "replicates": drawn.shape[2], "seed": bootstrap.SEED},
    }


def _with_intervals(
    points: tuple[float | None, float | None], drawn: Float64[np.ndarray, "2 r"]
) -> dict[str, Any]:
    """Join each score with its interval and the number of replicates that lack it."""
    out: dict[str, Any] = {}
    for name, value, values in zip(NAMES, points, drawn, strict=True):
        out[name] = value
        out[f"{name}_interval"] = None if value is None else bootstrap.interval(values)
    out["one_sided_replicates"] = int(np.isnan(drawn[0]).sum())
    return out


def _macro(findings: dict[str, Any], drawn: Float64[np.ndarray, "c 2 r"]) -> dict[str, Any]:
    """Average over the findings that have both sides.

    A replicate averages over those that have both sides in it; it is told in how many replicates
    these are fewer.
    """
    defined = [c for c, entry in enumerate(findings.values()) if entry["auroc"] is not None]
    out: dict[str, Any] = {"findings": len(defined), "of": len(findings)}
    out["left_out"] = [name for name, entry in findings.items() if entry["auroc"] is None]
    for i, name in enumerate(NAMES):
        values = [entry[name] for entry in findings.values() if entry[name] is not None]
        out[name] = float(np.mean(values)) if values else None
        out[f"{name}_interval"] = (
            bootstrap.interval(bootstrap.mean_of_defined(drawn[defined, i])) if values else None
        )
    out["replicates_with_fewer"] = int(np.isnan(drawn[defined, 0]).any(axis=0).sum())
    return out
