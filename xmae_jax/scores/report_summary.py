"""All scores of a split's reports, from `predictions.csv` alone."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from xmae_jax.scores import bootstrap
from xmae_jax.scores.agreement import (
    POLICIES,
    agreement,
    difference,
    labelled,
    side_agreement,
)
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.scores.reports import Reports, Written
from xmae_jax.scores.text.copies import originality
from xmae_jax.scores.text.corpus import TextScoring, corpus_scores, score
from xmae_jax.scores.text.corpus import compare as compare_texts

CUT, CUT_MIMIC = 59, 99
"""Tokens that R2Gen (arXiv 2010.16056) keeps of reports of Indiana, and of MIMIC: 60 and 100 with
its start mark."""
_MIMIC = "MIMIC-CXR-JPG"  # as its adapter calls it
NOT_READ = "the rules that read findings are for English"
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def scoring_of(reports: Reports, *, meteor: bool) -> TextScoring:
    """Choose how texts are scored: as R2Gen has it, or by characters if they are Chinese.

    meteor: whether Java is started for METEOR, where it is there. Raises PredictionsError where
    studies are of different sections, or were not brought into one form.
    """
    said = {(one.sections, one.normalisation, one.marks) for one in reports.studies}
    if len(said) > 1:
        raise PredictionsError(
            "studies of different sections, normalisation or marks cannot be scored as one set"
        )
    ((sections, normalisation, marks),) = said
    text = "".join(one.reference for one in reports.studies)
    chinese = 5 * len(_CHINESE.findall(text)) > len(text)
    return TextScoring(
        tokeniser="characters" if chinese else "r2gen",
        sections=tuple(sections.split(" ")),
        normalisation=normalisation,
        marks=marks,
        cut=CUT_MIMIC if {one.source for one in reports.studies} == {_MIMIC} else CUT,
        meteor=meteor,
    )


def summarise(reports: Reports, split: str, *, meteor: bool) -> dict[str, Any]:
    """Score the studies of a split that have a reference.

    Of Chinese ones, `findings`, `labels` and `sides` are None, and `why` says so.
    """
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
    scoring = scoring_of(scored, meteor=meteor)
    return {
        **metrics,
        "text": corpus_scores(
            dict(zip(names, generated, strict=True)),
            dict(zip(names, references, strict=True)),
            scoring,
            patients=dict(zip(names, map(str, patients.tolist()), strict=True)),
        ),
        **_findings(scored, generated, references, english=_english(scoring)),
        "originality": originality(
            {
                "generated": [(one.generated, one.generated_known) for one in scored.studies],
                "references": [(one.reference, one.reference_known) for one in scored.studies],
            },
            tokeniser=scoring.tokeniser,
        ),
        "tokens": _lengths([one.tokens for one in scored.studies]),
    }


def _english(scoring: TextScoring) -> bool:
    return scoring.tokeniser != "characters"


def _findings(
    scored: Reports, generated: list[str], references: list[str], *, english: bool
) -> dict[str, Any]:
    """Score what the texts say of findings, by the reports and by the films' labels."""
    if not english:
        return {"findings": None, "labels": None, "sides": None, "why": NOT_READ}
    patients, labels = scored.patients(), scored.labels
    said, told = labelled(generated), labelled(references)

    def by_policy(truth: np.ndarray, known: np.ndarray) -> dict[str, Any]:
        return {
            policy: agreement(said, truth, known=known, patients=patients, policy=policy)
            for policy in POLICIES
        }

    known = ~np.isnan(labels)
    return {
        "findings": by_policy(told, np.ones(told.shape, bool)),
        "labels": by_policy(labels, known) if known.any() else None,
        "sides": side_agreement(generated, references, patients=patients),
    }


def _lengths(values: list[int]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(np.mean(values)), "p5": low, "median": middle, "p95": high}


def each_study(reports: Reports) -> dict[str, np.ndarray]:
    """Score each study by itself; of the findings, F1 over those that one of both has.

    Of Chinese reports `findings_f1` is NaN.
    """
    names = [str(i) for i in range(len(reports.studies))]
    texts = [one.generated for one in reports.studies]
    references = [one.reference for one in reports.studies]
    scoring = scoring_of(reports, meteor=False)
    scored = score(
        dict(zip(names, texts, strict=True)), dict(zip(names, references, strict=True)), scoring
    )
    if not _english(scoring):
        return {**scored.each(), "findings_f1": np.full(len(texts), np.nan)}
    said, told = (labelled(of) == 1 for of in (texts, references))
    both, either = (said & told).sum(axis=1), said.sum(axis=1) + told.sum(axis=1)
    f1 = 2 * both / np.maximum(either, 1)
    return {**scored.each(), "findings_f1": np.where(either > 0, f1, 1.0)}


def _by_id(reports: Reports) -> dict[tuple[str, str], Written]:
    found: dict[tuple[str, str], Written] = {}
    for one in reports.studies:
        if found.setdefault((one.source, one.id), one) is not one:
            raise PredictionsError(f"study {one.id} stands there twice")
    return found


def compare(first: Reports, second: Reports, split: str, *, meteor: bool) -> dict[str, Any]:
    """Return differences, first minus second, over the studies of a split that both have.

    Raises PredictionsError where there is none, an id stands for several studies, or a study has
    another reference in each.
    """
    here, there = (_by_id(some.of_split(split)) for some in (first, second))
    pairs = [(one, there[key]) for key, one in here.items() if key in there and one.reference]
    if not pairs:
        raise PredictionsError(f"no study of split {split!r} with a report stands in both files")
    if count := sum(one.reference != other.reference for one, other in pairs):
        raise PredictionsError(f"{count:,} studies have another reference in each of the two files")
    both = [Reports(one) for one in zip(*pairs, strict=True)]
    scoring = scoring_of(Reports(both[0].studies + both[1].studies), meteor=meteor)
    names = [str(i) for i in range(len(pairs))]
    texts = [[one.generated for one in of.studies] for of in both]
    references, patients = [one.reference for one, _ in pairs], both[0].patients()
    scoring = scoring_of(both[0], meteor=meteor)
    words = compare_texts(
        dict(zip(names, texts[0], strict=True)),
        dict(zip(names, texts[1], strict=True)),
        dict(zip(names, references, strict=True)),
        dataclasses.replace(scoring, cut=None),
        patients=dict(zip(names, map(str, patients.tolist()), strict=True)),
    )["full"]
    policy = POLICIES[0]
    findings = {}
    if _english(scoring):
        said, truth = [labelled(some) for some in texts], labelled(references)
        findings = difference(said[0], said[1], truth, patients=patients, policy=policy)
    return {
        "split": split,
        "studies": len(pairs),
        "patients": int(patients.max()) + 1,
        "policy": policy,
        "scores": words | {f"{name} micro F1": entry for name, entry in findings.items()},
    }
