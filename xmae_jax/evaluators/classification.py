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
    entries: Mapping[str, Sequence[Sequence[Any]]]
    """Split -> the lines of `index.csv` of each source, in the order of its records."""
    train_positive: Shaped[np.ndarray, " c"]
    """Films of the training split with each finding."""

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
            index=index,
            id=entry.id,
            patient=entry.patient,
            study=entry.study,
            view=entry.view,
            source=entry.source,
            sex=entry.sex,
            age=entry.age,
        )


def _card(findings: Sequence[str], row: Row) -> Image.Image:
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
            f"  {_told(entry, 'auroc'):<20}  {_told(entry, 'average_precision')}"
        )
    macro = metrics["macro"]
    yield (
        f"  {'mean of ' + str(macro['findings']) + ' findings':<28} {'':>6} {'':>7}"
        f"  {_told(macro, 'auroc'):<20}  {_told(macro, 'average_precision')}"
    )
    if macro["left_out"]:
        yield f"  not in the mean, having one side only: {', '.join(macro['left_out'])}"


def _told(entry: dict[str, Any], name: str) -> str:
    if entry[name] is None:
        return "undefined"
    low, high = entry[f"{name}_interval"]
    return f"{entry[name]:.3f} ({low:.3f}-{high:.3f})"
