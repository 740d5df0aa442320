"""All scores of a split's reports, from `predictions.csv` alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmae_jax.scores import bootstrap
from xmae_jax.scores.agreement import POLICIES, agreement, labelled, side_agreement
from xmae_jax.scores.reports import Reports
from xmae_jax.scores.text.copies import originality
from xmae_jax.scores.text.corpus import TextScoring, corpus_scores, score


def summarise(reports: Reports, split: str, scoring: TextScoring) -> dict[str, Any]:
    """Score the studies of a split that have a reference."""
    there = reports.of_split(split)
    scored = Reports(tuple(one for one in there.studies if one.reference))
    generated = [one.generated for one in scored.studies]
    references = [one.reference for one in scored.studies]
    patients = scored.patients()
    names = [str(i) for i in range(len(generated))]
    metrics: dict[str, Any] = {
        "split": split,
        "studies": len(generated),
        "patients": int(patients.max(initial=-1)) + 1,
        "without_reference": len(there.studies) - len(generated),
        "bootstrap": {"replicates": bootstrap.REPLICATES, "seed": bootstrap.SEED},
    }
    if not generated:
        return metrics
    said, told = labelled(generated), labelled(references)
    everywhere = np.ones(told.shape, bool)
    labels = scored.labels
    by_policy = {
        policy: agreement(said, told, known=everywhere, patients=patients, policy=policy)
        for policy in POLICIES
    }
    by_label = None
    if not np.isnan(labels).all():
        by_label = {
            policy: agreement(
                said, labels, known=~np.isnan(labels), patients=patients, policy=policy
            )
            for policy in POLICIES
        }
    return {
        **metrics,
        "text": corpus_scores(
            dict(zip(names, generated, strict=True)),
            dict(zip(names, references, strict=True)),
            scoring,
            patients=dict(zip(names, map(str, patients.tolist()), strict=True)),
        ),
        "findings": by_policy,
        "labels": by_label,
        "sides": side_agreement(generated, references, patients=patients),
        "originality": originality(
            generated, references, training=scored.known(), tokeniser=scoring.tokeniser
        ),
        "tokens": _lengths([one.tokens for one in scored.studies]),
    }


def _lengths(values: list[int]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(np.mean(values)), "p5": low, "median": middle, "p95": high}


def each_study(reports: Reports, scoring: TextScoring) -> dict[str, np.ndarray]:
    """Score each study by itself; of the findings, F1 over those of CheXpert's 14 that one has."""
    names = [str(i) for i in range(len(reports.studies))]
    texts = [one.generated for one in reports.studies]
    references = [one.reference for one in reports.studies]
    scored = score(
        dict(zip(names, texts, strict=True)), dict(zip(names, references, strict=True)), scoring
    )
    said, told = (labelled(of) == 1 for of in (texts, references))
    both, either = (said & told).sum(axis=1), said.sum(axis=1) + told.sum(axis=1)
    f1 = 2 * both / np.maximum(either, 1)
    return {**scored.each(), "findings_f1": np.where(either > 0, f1, 1.0)}
