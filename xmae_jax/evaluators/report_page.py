"""`report.html` of generated reports: scores, and the best and worst studies with their films.

One file, no script, nothing fetched, every value escaped. It shows films and reports of patients,
so it is to be kept as they are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xmae_jax.evaluators.page import leaks, origin, template
from xmae_jax.scores.agreement import NAMES, SETS, labelled
from xmae_jax.scores.labeller import sides
from xmae_jax.scores.report_summary import each_study
from xmae_jax.scores.reports import Reports, Written
from xmae_jax.scores.text.corpus import NAMES as TEXT_SCORES

SHOWN = 20
_FILM = 300  # px of a film's longer side
_TEXT_TITLES = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "meteor": "METEOR",
}
assert tuple(_TEXT_TITLES) == TEXT_SCORES
_SET_TITLES = {"chexpert_14": "CheXpert's 14", "chexpert_5": "CheXpert's five"}
assert tuple(_SET_TITLES) == tuple(SETS)

Films = Callable[[Written], Sequence[UInt8[np.ndarray, "h w"]]]


class Shown(NamedTuple):
    """A study of the page."""

    study: Written
    f1: float | None
    """Of the findings; None where they are not read."""
    rouge_l: float
    films: list[str]
    """As URIs of JPEG data."""
    both: list[str]
    """Findings that text and report have, with the sides of each where these differ."""
    missed: list[str]
    added: list[str]


def report_page(reports: Reports, metrics: Mapping[str, Any], *, films: Films) -> str:
    """Write the page of what `summarise` returned for a split of `reports`."""
    scored = [one for one in reports.of_split(metrics["split"]).studies if one.reference]
    best, worst = _ends(Reports(tuple(scored)), films) if scored else ([], [])
    return template("reports.html").render(
        m=metrics,
        along=lambda share: round(100 * share, 1),
        about=list(_about(metrics)),
        remarks=list(_remarks(metrics)),
        best=best,
        worst=worst,
        texts=_TEXT_TITLES,
        sets=_SET_TITLES,
        truths={"reports": metrics.get("findings"), "labels": metrics.get("labels")},
    )


def _ends(reports: Reports, films: Films) -> tuple[list[Shown], list[Shown]]:
    """Return the best and the worst, by F1 of the findings, and of equal ones by ROUGE-L."""
    each = each_study(reports)
    order = np.lexsort((-each["rouge_l"], -each["findings_f1"]))
    count = min(SHOWN, (len(order) + 1) // 2)
    shown = []
    for rows in (order[:count], order[::-1][: min(count, len(order) - count)]):
        shown.append([_shown(reports.studies[i], each, int(i), films) for i in rows])
    return shown[0], shown[1]


def _shown(study: Written, each: Mapping[str, Any], row: int, films: Films) -> Shown:
    said, told = (
        {name for name, value in zip(NAMES, one, strict=True) if value == 1}
        for one in labelled([study.generated, study.reference])
    )
    of_said, of_told = sides(study.generated), sides(study.reference)

    def named(name: str) -> str:
        here, there = (" and ".join(sorted(of.get(name, ()))) for of in (of_said, of_told))
        return name if here == there else f"{name} ({here or 'no side'}, not {there or 'no side'})"

    return Shown(
        study,
        None if np.isnan(each["findings_f1"][row]) else float(each["findings_f1"][row]),
        float(each["rouge_l"][row]),
        [_uri(film) for film in films(study)],
        [named(name) for name in NAMES if name in said & told],
        [name for name in NAMES if name in told - said],
        [name for name in NAMES if name in said - told],
    )


def _uri(film: UInt8[np.ndarray, "h w"]) -> str:
    image, out = Image.fromarray(film), io.BytesIO()
    image.thumbnail((_FILM, _FILM))
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _about(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say of what these are the scores, as (what, value)."""
    about = metrics["about"]
    yield from origin(metrics)
    yield "Scored", f"{metrics['patients']:,} patients, {metrics['studies']:,} studies"
    if "text" in metrics:
        scoring = metrics["text"]["scoring"]
        yield "Sections", " and ".join(scoring["sections"])
        yield "Marks of de-identification in reports", scoring["marks"].replace("_", " ")
    if "leaks" in about:
        yield "Films in training too", leaks(about)


def _remarks(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Say what a reader may be misled by, and what was left out."""
    about = metrics["about"]
    if about.get("of_training"):
        yield "These studies are those of training: the scores say nothing of other studies."
    if count := about.get("without_film"):
        yield f"Not scored, since they have no film: {count:,} studies."
    if not metrics["studies"]:
        yield "No study of this split has film and report, so nothing is scored."
        return
    if count := metrics["without_reference"]:
        yield f"Not scored, since they have no report: {count:,} studies."
    if count := about.get("unreadable"):
        yield f"Not scored, since their records are damaged: {count:,} studies."
    normal = metrics["originality"]["references"]
    if normal["copied_share"]:
        yield (
            f"{normal['copied_share']:.1%} of the reports themselves stand word for word in"
            " training, since normal studies are told alike: a share like that of the generated"
            " texts is no copying."
        )
    if "why" in metrics:
        yield f"Findings and sides are not scored: {metrics['why']}."
        return
    yield (
        "Findings are told from texts by rules, which err too: docs/labeller.md has their errors."
    )
