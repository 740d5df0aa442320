"""How well findings are told: rows of scores to `predictions.csv`, and all numbers from that.

The rows are written as text and read back before anything is scored, so the file alone gives the
same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageDraw, ImageFont
from scipy.special import expit

from xmae_jax import writers
from xmae_jax.data.index import Entry
from xmae_jax.scores.predictions import Film, from_csv, to_csv
from xmae_jax.scores.summary import summarise

Row = dict[str, Any]
Splits = Mapping[str, Callable[[], Iterable[Row]]]

_SHOWN = 9  # findings beside a film
_MARKS = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


@dataclasses.dataclass(frozen=True)
class Classification:
    """The evaluator; it scores the last of the splits that it has entries of."""

    findings: tuple[str, ...]
    entries: Mapping[str, Sequence[Sequence[Entry]]]
    """Split -> the lines of `index.csv` of each source, in the order of its records."""
    train_positive: Shaped[np.ndarray, " c"] | None
    """Films of the training split with each finding; None where that is not known."""

    predict = "classify"

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of each split with entries."""
        names = [name for name in splits if name in self.entries]
        lines = (
            (self._film(name, row), row["logits"], row["labels"])
            for name in names
            for row in splits[name]()
        )
        text = to_csv(self.findings, lines)
        predictions = from_csv(text, name="predictions.csv")
        return summarise(predictions, names[-1], train_positive=self.train_positive), text

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the scores for a terminal."""
        return table(metrics)

    def draw(self, rows: Iterable[Row], path: Path, *, title: str) -> None:
        """Draw each film beside its highest scores and its labels."""
        panels = [
            {
                "film": writers.outlined(row["image"], None),
                "probability, label": _card(self.findings, row),
            }
            for row in rows
        ]
        writers.picture(path, panels, title=title)

    def _film(self, split: str, row: Row) -> Film:
        source, index = (int(i) for i in row["id"])
        entry = self.entries[split][source][index]
        return Film(
            split=split,
            source_index=source,
            place=index,
            id=entry.id,
            patient=entry.patient,
            study=entry.study,
            view=entry.view,
            source=entry.source,
            sex=entry.sex,
            age=entry.age,
        )


def _card(findings: tuple[str, ...], row: Row) -> Image.Image:
    """List the findings that are labelled present, then those of the highest scores."""
    probability = expit(row["logits"].astype(np.float64))
    order = np.lexsort((-probability, row["labels"] != 1))[:_SHOWN]
    panel = Image.new("RGB", (writers.PANEL, writers.PANEL), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    for line, c in enumerate(order):
        top = 2 + line * (writers.PANEL // _SHOWN)
        mark = _MARKS.get(float(row["labels"][c]), "")
        colour = "darkorange" if mark == "present" else "black"
        draw.text((2, top), findings[c], colour, font)
        draw.text((222, top), mark, colour, font, anchor="ra")
        draw.rectangle((2, top + 16, 2 + 180 * probability[c], top + 19), (74, 127, 168))
        draw.text((222, top + 11), f"{probability[c]:.2f}", "grey", font, anchor="ra")
    return panel


def table(metrics: dict[str, Any]) -> str:
    """Write the scores of a split for a terminal."""
    return "\n".join(_lines(metrics))


def _lines(metrics: dict[str, Any]) -> Iterator[str]:
    yield (
        f"findings of {metrics['films']:,} films of {metrics['patients']:,} patients"
        f" ({metrics['split']}); 95 % intervals by patients"
    )
    yield f"  {'finding':<28} {'with':>6} {'without':>7}  {'AUROC':<20}  average precision"
    for name, entry in metrics["findings"].items():
        yield (
            f"  {name:<28} {entry['n_positive']:>6,} {entry['n_negative']:>7,}"
            f"  {told(entry, 'auroc'):<20}  {told(entry, 'average_precision')}"
        )
    macro = metrics["macro"]
    yield (
        f"  {'mean of ' + _count(macro['findings']):<43}"
        f"  {told(macro, 'auroc'):<20}  {told(macro, 'average_precision')}"
    )
    if macro["left_out"]:
        yield f"  not in the mean, having one side only: {', '.join(macro['left_out'])}"
    yield from _decided(macro, metrics["chosen_on"])
    if metrics["frequency_groups"]:
        yield f"  {metrics['frequency_groups']['rule']}"
        for name in ("head", "medium", "tail"):
            group = metrics["frequency_groups"][name]
            if group["of"]:
                label = f"{name}: {group['findings']} of {group['of']}"
                scores = f"{told(group, 'auroc'):<20}  {told(group, 'average_precision')}"
                yield f"  {label:<43}  {scores}"
    for name, group in metrics["subgroups"].items():
        if gap := group["gaps"].get("mean"):
            yield (
                f"  by {name}: AUROC of {gap['highest']} above that of {gap['lowest']} by"
                f" {told(gap, 'auroc')}, {_count(len(group['common_findings']))}"
            )


def _count(findings: int) -> str:
    return "1 finding" if findings == 1 else f"{findings} findings"


def _decided(macro: dict[str, Any], chosen_on: dict[str, Any]) -> Iterator[str]:
    """Tell of thresholds and temperatures, as far as there are any."""
    if macro["threshold"]["f1"] is None:
        return
    rates = {"sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1", "mcc": "MCC"}
    means = ((text, macro["threshold"][name]) for name, text in rates.items())
    shown = ", ".join(f"{text} {value:.3f}" for text, value in means if value is not None)
    yield f"  means by thresholds of greatest F1 in {chosen_on['split']}: {shown}"
    before, after = macro["calibration"], macro["scaled"]
    yield (
        f"  by temperatures of {chosen_on['split']}, {_count(after['ece_findings'])}:"
        f" ECE {after['ece']:.3f}, Brier score {after['brier']:.3f};"
        f" without, {before['ece_findings']}: {before['ece']:.3f}, {before['brier']:.3f}"
    )


def comparison_table(metrics: dict[str, Any]) -> str:
    """Write the differences of two sets of predictions for a terminal."""
    lines = [
        f"against {metrics['file']}: the {metrics['films']:,} films of"
        f" {metrics['patients']:,} patients ({metrics['split']}) that both have",
        f"  {'finding':<28} {'AUROC':>5} {'there':>6}  {'difference':<23} DeLong p",
    ]
    for name, entry in metrics["findings"].items():
        p = entry.get("delong_p")
        lines.append(f"{_pair(name, entry)}  {'' if p is None else f'{p:.3g}'}".rstrip())
    macro = metrics["macro"]
    lines.append(_pair(f"mean of {_count(macro['findings'])}", macro).rstrip())
    return "\n".join(lines)


def _pair(name: str, entry: dict[str, Any]) -> str:
    if entry["first"]["auroc"] is None:
        return f"  {name:<28} undefined"
    values = entry["first"]["auroc"], entry["second"]["auroc"]
    difference = told(entry["difference"], "auroc", sign="+")
    return f"  {name:<28} {values[0]:.3f}  {values[1]:.3f}  {difference:<23}"


def told(entry: dict[str, Any], name: str, *, sign: str = "") -> str:
    """Write a score and its interval, or that it is undefined."""
    value, interval = entry[name], entry[f"{name}_interval"]
    if value is None:
        return "undefined"
    if interval is None:
        return f"{value:{sign}.3f}"
    low, high = interval
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
