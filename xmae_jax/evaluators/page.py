"""`report.html` of an evaluation: scores, curves and what was left out, for a reader.

One file, no script, nothing fetched, every value escaped. It has no film and no id in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import expit

from xmae_jax.scores import calibration, curves, decisions, groups
from xmae_jax.scores.predictions import Predictions

TEMPLATES = Path(__file__).parents[1] / "templates"
_LEFT, _TOP, _SIDE = 20, 6, 100  # of the square that a curve is drawn in
_SHOWN_BIN = 10  # films that a bin of the reliability curve needs to be drawn
_TITLES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
    "mcc": "MCC",
    "ppv": "PPV",
    "npv": "NPV",
}
assert tuple(_TITLES) == decisions.RATES


class Charts(NamedTuple):
    """One finding's curves as SVG paths; coordinates of a square of 100 within its margins."""

    name: str
    entry: Mapping[str, Any]
    roc: str
    chosen: tuple[float, float] | None
    """Where the threshold lies on the ROC curve."""
    precision_recall: str
    base: float
    """Height of the share of films with the finding, which chance has for precision."""
    before: tuple[str, str]
    after: tuple[str, str] | None
    """Reliability as predicted and by the temperature: a line and its dots."""


def results_page(predictions: Predictions, metrics: Mapping[str, Any]) -> str:
    """Write the page of what `summarise` returned for a split of `predictions`."""
    scored = predictions.of_split(metrics["split"])
    lowest = _lowest(metrics)
    return template("scores.html").render(
        m=metrics,
        lowest=lowest,
        along=lambda auroc: round(100 * (auroc - lowest) / (1 - lowest), 1),
        about=list(_about(metrics)),
        remarks=list(_remarks(metrics)),
        charts=[
            _charts(scored, c, metrics["findings"][name])
            for c, name in enumerate(scored.findings)
            if metrics["findings"][name]["auroc"] is not None
        ],
        rates=_TITLES,
        qualities={"brier": "Brier", "ece": "ECE", "log_loss": "log loss"},
        enough=groups.ENOUGH,
        bins=calibration.BINS,
        shown_bin=_SHOWN_BIN,
    )


def _lowest(metrics: Mapping[str, Any]) -> float:
    """Choose where the scale of AUROCs begins: at 0.5 if all intervals do, else lower."""
    entries = [
        *metrics["findings"].values(),
        *(metrics["by_study"] or {"each": {}})["each"].values(),
    ]
    lows = [entry["auroc_interval"][0] for entry in entries if entry["auroc_interval"]]
    return min(0.5, np.floor(10 * min(lows, default=0.5)) / 10)


def template(name: str) -> jinja2.Template:
    """Read a page's template; values are escaped, and every name has to be there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["three"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}"
    return environment.get_template(name)


def origin(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say where scores come from, as (what, value)."""
    about = metrics["about"]
    if "data" in about:
        yield "Data", ", ".join(about["data"])
    if "run" in about:
        yield "Checkpoint", f"step {about['step']:,} of {about['run']}"
    else:
        yield "Predictions", about["predictions"]
    yield "Split", metrics["split"]


def _about(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say of what these are the scores, as (what, value)."""
    about = metrics["about"]
    yield from origin(metrics)
    counts = (f"{metrics[name]:,} {name}" for name in ("patients", "studies", "films"))
    yield "Scored", ", ".join(counts)
    chosen = metrics["chosen_on"]
    yield (
        "Thresholds and temperatures",
        (
            f"chosen on {chosen['films']:,} films of the split {chosen['split']}"
            if chosen["films"]
            else f"none: there are no films of the split {chosen['split']}"
        ),
    )
    if "leaks" in about:
        yield "Films in training too", leaks(about)
        if compared := about.get("leaks_compared"):
            yield "Training films looked at for that", ", ".join(compared)
        if gone := about.get("leaks_not_compared"):
            yield "Not there to be looked at", f"training films of {', '.join(gone)}"


def leaks(about: Mapping[str, Any]) -> str:
    if of_training := about.get("of_training"):
        return f"all of {', '.join(of_training)}"
    if (found := about["leaks"]) is None:
        return "not looked for: the training data could not be read"
    told = [f"{count:,} × {kind.replace('_', ' ')}" for kind, count in found.items()]
    return f"not refused: {', '.join(told)}" if told else "none"


def _remarks(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Say what a reader may be misled by, and what was left out."""
    findings, about, chosen_on = metrics["findings"], metrics["about"], metrics["chosen_on"]
    if about.get("of_training"):
        yield "These films are those of training: the scores say nothing of other films."
    elif "run" not in about and metrics["split"] == "train":
        yield "If the model was trained on these films, the scores say nothing of other films."
    if split := about.get("refitted_on"):
        yield f"After its head was chosen on the split {split}, it was trained on it too. " + (
            "Thresholds and temperatures are from what the head said of it before."
            if chosen_on["films"]
            else "What it said before is not there, so there are no thresholds and temperatures."
        )
    if metrics["split"] == chosen_on["split"]:
        yield (
            "Thresholds and temperatures were chosen on the very films that are scored here, so"
            " what comes of them looks better than it would on other films. Checkpoints and"
            " settings may have been chosen on them too."
        )
    if left_out := metrics["macro"]["left_out"]:
        yield (f"Left out of every mean, since all films are on one side: {', '.join(left_out)}.")
    few = [
        name
        for name, entry in findings.items()
        if 0 < min(entry["n_positive"], entry["n_negative"]) < groups.ENOUGH
    ]
    if few:
        yield (
            f"Fewer than {groups.ENOUGH} films on one side, so hardly anything is known of:"
            f" {', '.join(few)}."
        )
    lacking = {
        name: entry["one_sided_replicates"]
        for name, entry in findings.items()
        if entry.get("one_sided_replicates")
    }
    if lacking:
        told = ", ".join(f"{name} {count:,}" for name, count in lacking.items())
        yield (
            f"Of {metrics['bootstrap']['replicates']:,} bootstrap replicates, those without both"
            f" sides were left out of a finding's interval: {told}."
        )
    labels = sum(entry["n_unknown"] for entry in findings.values())
    unsure = sum(entry["n_uncertain"] for entry in findings.values())
    if labels or unsure:
        yield (
            f"Not scored: {labels:,} labels that are not known and {unsure:,} that are uncertain,"
            f" of {len(findings) * metrics['films']:,}."
        )
    if count := metrics["films_without_patient"]:
        yield f"Of {count:,} films the patient is not known; each counts as a patient of its own."
    if count := about.get("unreadable_films"):
        yield f"Not scored, since their records are damaged: {count:,} films."


def _charts(scored: Predictions, c: int, entry: Mapping[str, Any]) -> Charts:
    known = scored.known[:, c]
    logits, labels = scored.logits[known, c], scored.labels[known, c] == 1
    chosen, after, decided = None, None, entry["threshold"]
    if decided is not None:
        chosen = _at(1 - decided["specificity"], decided["sensitivity"])
    if (warmth := entry["calibration"]["temperature"]) is not None:
        after = _reliability(logits / warmth, labels)
    return Charts(
        name=scored.findings[c],
        entry=entry,
        roc=_path(curves.roc(logits, labels)),
        chosen=chosen,
        precision_recall=_path(curves.precision_recall(logits, labels)),
        base=_at(0.0, float(labels.mean()))[1],
        before=_reliability(logits, labels),
        after=after,
    )


def _reliability(
    logits: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> tuple[str, str]:
    films, probability, frequency = calibration.reliability(expit(logits), labels)
    points = np.stack([probability, frequency], axis=1)[films >= _SHOWN_BIN]
    dots = (_at(*point) for point in points)
    return _path(points), "".join(f"M{x:g} {y:g}h0" for x, y in dots)


def _path(points: Float64[np.ndarray, "n 2"]) -> str:
    places = "L".join(f"{x:g} {y:g}" for x, y in (_at(*point) for point in points))
    return f"M{places}" if places else ""


def _at(x: float, y: float) -> tuple[float, float]:
    """Return where a point of the unit square is drawn."""
    return round(_LEFT + _SIDE * x, 1), round(_TOP + _SIDE * (1 - y), 1)
