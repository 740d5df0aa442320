"""How well contours agree with those that people drew: Dice and intersection over union.

A pixel counts as inside from a probability of 0.5. Films count in each channel of which all the
truth is known, each once. Means are over films that have a truth; of the others, such as laterals,
it is told for how many the contour stayed empty, which would count 1 and lift the mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmae_jax import writers
from xmae_jax.data.lungs import CHANNELS, dice

Row = dict[str, Any]
Splits = dict[str, Callable[[], Iterable[Row]]]


class Segmentation:
    """The evaluator."""

    predict = "segment"

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of "val"."""
        lines = [line for row in splits["val"]() for line in _lines(row)]
        metrics: dict[str, Any] = {"rows": len({(x["source"], x["index"]) for x in lines})}
        groups: dict[str, list[Row]] = {}
        for line in lines:
            if line["empty"]:
                for name, more in (("nothing_there", 1), ("left_empty", line["dice"] == 1)):
                    key = f"{name}_{line['channel']}"
                    metrics[key] = metrics.get(key, 0) + int(more)
                continue
            groups.setdefault(line["channel"], []).append(line)
            groups.setdefault(f"{line['channel']}_source_{line['source']}", []).append(line)
        for name, group in sorted(groups.items()):
            metrics[f"films_{name}"] = len(group)
            for kind in ("dice", "iou"):
                metrics[f"{kind}_{name}"] = float(np.mean([line[kind] for line in group]))
        return metrics, _csv(lines)

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the means for a terminal."""
        lines = [f"contours of {metrics['rows']} held-out films"]
        for key in metrics:
            if key.startswith("dice_"):
                name = key.removeprefix("dice_")
                lines.append(
                    f"  {name.replace('_source_', ', source '):<28} Dice {metrics[key]:.4f}"
                    f"  IoU {metrics[f'iou_{name}']:.4f}  ({metrics[f'films_{name}']} films)"
                )
        for channel in CHANNELS:
            if films := metrics.get(f"nothing_there_{channel}"):
                kept = metrics[f"left_empty_{channel}"]
                lines.append(f"  {channel:<28} nothing to outline: {kept} of {films} left empty")
        return "\n".join(lines)

    def draw(self, rows: Iterable[Row], path: Path, *, title: str) -> None:
        """Draw the film, the truth and each channel's contour of each row."""
        panels = []
        for row in rows:
            drawn = row["truth"] * row["known"].all(axis=(0, 1))
            shown = {"film": None, "truth": drawn.max(axis=2) > 0}
            for c, name in enumerate(CHANNELS):
                shown[name] = row["probability"][:, :, c] >= 0.5
            panels.append({k: writers.outlined(row["image"], m) for k, m in shown.items()})
        writers.picture(path, panels, title=title)


def _lines(row: Row) -> Iterator[Row]:
    source, index = (int(i) for i in row["id"])
    for c, channel in enumerate(CHANNELS):
        if row["known"][:, :, c].all():
            guess, truth = row["probability"][:, :, c] >= 0.5, row["truth"][:, :, c] > 0
            value = dice(guess, truth) if guess.any() or truth.any() else 1.0
            line = {"source": source, "index": index, "channel": channel}
            line["empty"] = int(not truth.any())
            yield {**line, "dice": value, "iou": value / (2 - value)}


def _csv(lines: list[Row]) -> str:
    text = io.StringIO()
    names: list[str] = ["source", "index", "channel", "empty", "dice", "iou"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in line.items()})
    return text.getvalue()
