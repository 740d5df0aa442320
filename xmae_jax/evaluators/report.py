"""What a model writes, against reports: rows of tokens to `predictions.csv`, and all from that.

The rows are written as text and read back before anything is scored, so the file alone gives the
same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xmae_jax import writers
from xmae_jax.data.text import NORMALISATION, Marks, Tokenizer
from xmae_jax.scores.agreement import POLICIES
from xmae_jax.scores.report_summary import scoring_of, summarise
from xmae_jax.scores.reports import Reports, Written, from_csv, to_csv
from xmae_jax.scores.text.copies import in_training
from xmae_jax.scores.text.corpus import NAMES as TEXT_SCORES

Row = dict[str, Any]
Splits = Mapping[str, Callable[[], Iterable[Row]]]


class Study(NamedTuple):
    """What is known of a study beside its films."""

    id: str
    patient: str
    study: str
    source: str
    reference: str
    """Its report, whole; empty if it has none."""
    labels: tuple[float, ...]
    """Of its films, in the order of scores.agreement.NAMES."""


@dataclasses.dataclass(frozen=True)
class Reporting:
    """The evaluator; it scores the last of the splits that it has studies of."""

    tokenizer: Tokenizer
    studies: Mapping[str, Sequence[Sequence[Study]]]
    """Split -> the studies of each source, in the order of its rows."""
    training: Sequence[str] | None
    """The texts of training; None where they are not known."""
    sections: tuple[str, ...]
    """Which sections of reports the references hold."""
    marks: Marks
    """What became of marks of de-identification there."""
    meteor: bool
    """Whether Java is started for METEOR."""

    predict = "write"

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of each split with studies.

        Rows without a film are left out and counted: nothing is written of what was not seen.
        """
        names = [name for name in splits if name in self.studies]
        written, without = [], 0
        for name in names:
            without = 0
            for row in splits[name]():
                if row["has_image"].any():
                    written.append(self._written(name, row))
                else:
                    without += 1
        text = to_csv(self._compared(written))
        reports = from_csv(text, name="predictions.csv") if written else Reports(())
        metrics = summarise(reports, names[-1], meteor=self.meteor)
        return {**metrics, "about": {"without_film": without}}, text

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the scores for a terminal."""
        return table(metrics)

    def draw(self, rows: Iterable[Row], path: Path, *, title: str) -> None:
        """Draw each study's first film beside what is written and what its tokens should be."""
        panels = [
            {
                "film": writers.outlined(row["image"][0], None),
                "written": _card(self.tokenizer.decode(row["written"])),
                "report": _card(self.tokenizer.decode(row["text"])),
            }
            for row in rows
        ]
        writers.picture(path, panels, title=title)

    def _written(self, split: str, row: Row) -> Written:
        source, index = (int(i) for i in row["id"])
        study = self.studies[split][source][index]
        text = self.tokenizer.decode(row["written"])
        return Written(
            split=split,
            source_index=source,
            place=index,
            id=study.id,
            patient=study.patient,
            study=study.study,
            source=study.source,
            sections=" ".join(self.sections),
            normalisation=NORMALISATION,
            marks=self.marks,
            generated=text,
            reference=study.reference,
            tokens=int(np.count_nonzero(row["written"])),
            generated_known=None,
            reference_known=None,
            labels=study.labels,
        )

    def _compared(self, written: list[Written]) -> list[Written]:
        """Say of which texts training has the like."""
        if self.training is None or not written:
            return written
        texts = [text for one in written for text in (one.generated, one.reference)]
        tokeniser = scoring_of(Reports(tuple(written)), meteor=False).tokeniser
        known = in_training(texts, training=self.training, tokeniser=tokeniser)
        return [
            one._replace(generated_known=known[2 * i], reference_known=known[2 * i + 1])
            for i, one in enumerate(written)
        ]


def _card(text: str) -> Image.Image:
    """Write a text into a panel, as much as fits."""
    panel = Image.new("RGB", (writers.PANEL, writers.PANEL), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    line, top = "", 2
    for word in [*text.split(), None]:
        longer = f"{line} {word}".strip()
        if word is not None and draw.textlength(longer, font) < writers.PANEL - 6:
            line = longer
            continue
        draw.text((3, top), line, "black", font)
        line, top = word or "", top + 14
        if top > writers.PANEL - 14:
            break
    return panel


def table(metrics: dict[str, Any]) -> str:
    """Write the scores of a split for a terminal."""
    return "\n".join(_lines(metrics))


def _lines(metrics: dict[str, Any]) -> Iterator[str]:
    yield (
        f"reports of {metrics['studies']:,} studies of {metrics['patients']:,} patients"
        f" ({metrics['split']}); 95 % intervals by patients"
    )
    if without := metrics.get("about", {}).get("without_film"):
        yield f"  {without:,} studies have no film, and nothing is written of them"
    if not metrics["studies"]:
        return
    parts = {name: metrics["text"][name] for name in ("full", "cut") if name in metrics["text"]}
    heads = {"full": "whole texts", "cut": f"cut at {metrics['text']['scoring']['cut']} tokens"}
    yield f"  {'':<28} " + "".join(f"{heads[name]:<24}" for name in parts).rstrip()
    for score in TEXT_SCORES:
        told = "".join(f"{_told(part[score], 'value'):<24}" for part in parts.values())
        yield f"  {score:<28} {told}".rstrip()
    if outside := metrics.get("outside"):
        told = ", ".join(f"{name} {value:.3f}" for name, value in outside.get("scores", {}).items())
        yield f"  by another program: {outside.get('why') or outside['tool']} {told}".rstrip()
    truths = {"the reports": metrics["findings"], "the films' labels": metrics["labels"]}
    for truth, policies in truths.items():
        if policies is not None:
            yield from _agreement(truth, policies)
    sides = metrics["sides"]
    if sides is None:
        yield f"  findings and sides: not scored, {metrics['why']}"
    else:
        yield (
            f"  sides: {sides['sided']:,} findings with sides in the reports, {sides['found']:,} of"
            f" them with sides in the texts; right {_told(sides, 'right')},"
            f" of those found {_told(sides, 'right_of_found')}"
        )
    for name, entry in metrics["originality"].items():
        copied = entry["copied_share"]
        yield (
            f"  {name}: {entry['distinct']:,} distinct of {entry['reports']:,},"
            f" {entry['empty']:,} empty, median {entry['length']['median']:g} words,"
            f" copied from training {'not known' if copied is None else f'{copied:.1%}'}"
        )


def _agreement(truth: str, policies: Mapping[str, Any]) -> Iterator[str]:
    for policy in POLICIES[:2]:  # the third is in metrics.json
        entry = policies[policy]
        yield f"  findings as in {truth}, {policy.replace('_', ' ')}"
        for name in ("chexpert_14", "chexpert_5"):
            micro, macro = entry[name]["micro"], entry[name]["macro"]
            yield (
                f"    {name:<26} micro F1 {_told(micro, 'f1'):<22} macro F1 {_told(macro, 'f1')}"
                f" of {macro['findings']}; micro F1 of always normal"
                f" {_plain(entry[name]['always_normal'])}"
            )


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def comparison_table(metrics: Mapping[str, Any]) -> str:
    """Write the differences of two sets of reports for a terminal."""
    lines = [
        f"against {metrics['file']}: the {metrics['studies']:,} studies of"
        f" {metrics['patients']:,} patients ({metrics['split']}) that both have",
        f"  {'score':<28} {'here':>6} {'there':>6}  difference",
    ]
    for name, entry in metrics["scores"].items():
        if entry["difference"] is None:
            lines.append(f"  {name:<28} {entry.get('why', 'undefined')}")
            continue
        told = f"{entry['difference']:+.3f}"
        if entry["interval"]:
            told += " ({:+.3f} to {:+.3f})".format(*entry["interval"])
        lines.append(f"  {name:<28} {entry['first']:6.3f} {entry['second']:6.3f}  {told}")
    return "\n".join(lines)


def _told(entry: Mapping[str, Any], name: str) -> str:
    """Write a score and its interval, or that it is undefined."""
    value = entry[name]
    interval = entry["interval" if name == "value" else f"{name}_interval"]
    if value is None:
        return "not computed" if "why" in entry else "undefined"
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
