"""The model card that goes with every export: README.md with Hugging Face's header.

What it says is read from the run; what is not known is said not to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmae_jax.exports.provenance import DataSet, Origin
from xmae_jax.exports.terms import term_of


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card tells of."""

    name: str
    format: str
    findings: tuple[str, ...]
    image_size: int
    fit: str
    """How films became squares in the run's data: "pad" or "squash"."""
    model: list[tuple[str, str]]
    """What it is, as (what, value)."""
    use: str
    """How to load it, in Markdown."""
    origin: Origin
    scores: list[tuple[str, int, dict[str, Any]]]
    """Name of an evaluation, its step, and metrics.json."""
    files: list[tuple[str, int, str]]
    """Name, bytes and sha256 of what is beside the card."""


def write(card: Card) -> str:
    """Write the card."""
    parts = (
        _head(card),
        _about(card),
        _data(card),
        _weights(card),
        _scores(card),
        _terms(card),
        _table(("file", "bytes", "sha256"), [(n, f"{b:,}", s) for n, b, s in card.files]),
    )
    return "\n\n".join(parts) + "\n"


def _head(card: Card) -> str:
    library = {"hf": "transformers", "onnx": "onnx"}.get(card.format, "safetensors")
    task = "image-classification" if card.findings else "image-feature-extraction"
    return f"""---
license: other
license_name: terms-of-the-training-data
license_link: README.md
library_name: {library}
pipeline_tag: {task}
tags:
- chest-x-ray
- radiology
- xmae_jax
---"""


def _about(card: Card) -> str:
    what = "findings on" if card.findings else "features of"
    private = "\n\n**Not for the public.** See Terms." if card.origin.refusals() else ""
    found = f"\n\nFindings, in the order of the logits: {', '.join(card.findings)}."
    square = {
        "pad": "A film that is not square is to be centred on black before it is resized; no image"
        " processor does it.",
        "squash": "A film that is not square is squashed.",
    }[card.fit]
    return f"""# {card.name}

A vision transformer for {what} chest radiographs, exported by xmae_jax.{private}

**Not a medical device.** It has no approval for the care of patients anywhere, and its output is
no diagnosis. It is meant for research: to be compared, taken apart and trained further.

{_table(("what", "value"), card.model)}{found if card.findings else ""}

**Input.** One channel, {card.image_size} x {card.image_size} pixels, bone white on black; grey
level g of 0 to 255 becomes g / 127.5 - 1. {square}

For films of another kind than those below (of children, other views or devices, photographs) there
are no scores to go by.

{card.use}"""


def _data(card: Card) -> str:
    rows, credit = [], set()
    for one, data in _sets(card.origin):
        films = _told(data, "splits", "films") + " (not what the run was trained on)" * data.changed
        terms = _told(data, "licences", "films"), _told(data, "mask_licences", "masks")
        name = f"{_plain(one.name)}: {_plain(data.name)}"
        rows.append((name, films, *terms, _short(data.digest)))
        credit |= {f"{_plain(data.name)} ({_plain(name)})" for name in data.licences if name}
    names = ("run: data set", "films", "licences of films", "of given lung masks", "manifest")
    told = f"\n\nCredit is due to: {'; '.join(sorted(credit))}." if credit else ""
    return f"## Data\n\n{_table(names, rows)}{told}"


def _sets(origin: Origin) -> Iterator[tuple[Origin, DataSet]]:
    for one in origin.chain():
        for data in one.data:
            yield one, data


def _told(data: DataSet, field: str, what: str) -> str:
    if data.digest is None:
        return "not known"
    counts = getattr(data, field)
    told = (f"{_plain(name) or 'not known'}: {count:,}" for name, count in counts.items())
    return ", ".join(told) or f"no {what}"


def _weights(card: Card) -> str:
    rows = [
        (
            _plain(one.name) + (", a file" if one.kind == "file" else ""),
            "" if one.step is None else f"{one.step:,}",
            _short(one.config_digest),
            _short(one.weights_digest),
        )
        for one in card.origin.chain()
    ]
    names = ("run, and what it was begun from", "step", "config", "weights")
    return f"## Weights\n\nDigests are sha256.\n\n{_table(names, rows)}"


def _scores(card: Card) -> str:
    if not card.scores:
        return "## Scores\n\nNone: the run has not been evaluated."
    parts = ["## Scores"]
    for name, step, metrics in card.scores:
        other = "" if step == card.origin.step else " (of another step than these weights)"
        parts.append(f"### {name}, step {step:,}{other}")
        parts += [told] if (told := _scored_on(metrics.get("about", {}))) else []
        kind = texts if "text" in metrics else _findings if "findings" in metrics else _numbers
        parts.append(kind(metrics))
    return "\n\n".join(parts)


def _scored_on(about: dict[str, Any]) -> str:
    """Tell of the data that scores are of, and of what of them stands in training too."""
    said = []
    if "data" in about:
        names = ", ".join(_plain(Path(path).name) for path in about["data"])
        said.append(f"Of the data in {names}.")
    leaks = about.get("leaks", {})
    told = [f"{count:,} x {kind.replace('_', ' ')}" for kind, count in (leaks or {}).items()]
    if told:
        said.append(f"**In training too, not refused: {', '.join(told)}.**")
    if leaks is None:
        said.append("What stands in training too was not looked for: its data were gone.")
    return " ".join(said)


def _findings(metrics: dict[str, Any]) -> str:
    """Write scores of findings, with their 95 % intervals."""
    names, rates = ("auroc", "average_precision"), ("sensitivity", "specificity")
    rows = []
    for finding, entry in metrics["findings"].items():
        decided = entry.get("threshold") or {}
        rows.append(
            (
                finding,
                f"{entry['n_positive']:,}",
                f"{entry['n_negative']:,}",
                *(_score(entry, name) for name in names),
                f"{decided['probability']:.4f}" if decided else "undefined",
                *(_score(decided, name) for name in rates),
            )
        )
    macro = metrics.get("macro", {})
    if macro:
        count = macro.get("findings", len(rows))
        mean = f"mean of {count} finding{'s' * (count != 1)}"
        rows.append((mean, "", "", *(_score(macro, name) for name in names), "", "", ""))
    head = ("finding", "with", "without", "AUROC (95 % interval)", "average precision")
    head += ("threshold, of the probability", *rates)
    told = (
        f"{metrics.get('films', 0):,} films of {metrics.get('patients', 0):,} patients, split"
        f" {metrics.get('split')!r}. Intervals are by patients; thresholds were chosen on the split"
        f" {metrics.get('chosen_on', {}).get('split')!r}."
    )
    about = metrics.get("about", {})
    if about.get("own_data") is False:
        names = ", ".join(_plain(Path(path).name) for path in about["data"])
        told += f" The films are of other data than the run's: {names}."
    if about.get("refitted_on"):
        told += " After they were chosen the head was trained on that split too."
    if about.get("of_training"):
        told += " The films are those of training: the scores say nothing of other films."
    return f"{told}\n\n{_table(head, rows)}"


def texts(metrics: dict[str, Any]) -> str:
    """Write scores of reports, with their 95 % intervals and signatures."""
    rows = [
        (name, _score({name: one["value"], f"{name}_interval": one["interval"]}, name),
         _plain(one["signature"]))
        for name, one in metrics["text"]["full"].items()
    ]  # fmt: skip
    for policy, entry in (metrics["findings"] or {}).items():
        micro = _score(entry["chexpert_14"]["micro"], "f1")
        rows.append(("F1 of 14 findings, micro", micro, policy.replace("_", " ")))
    told = f"{metrics['studies']:,} studies of {metrics['patients']:,} patients, split"
    table = _table(("score", "value (95 % interval)", "signature"), rows)
    return f"{told} {metrics['split']!r}.\n\n{table}"


def _score(entry: dict[str, Any], name: str) -> str:
    value, interval = entry.get(name), entry.get(f"{name}_interval")
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _numbers(metrics: dict[str, Any]) -> str:
    rows = [
        (name, f"{value:.6g}" if isinstance(value, float) else str(value))
        for name, value in metrics.items()
        if isinstance(value, int | float | str)
    ]
    return _table(("what", "value"), rows)


def _terms(card: Card) -> str:
    said = card.origin.refusals()
    known = sorted(
        {licence for _, data in _sets(card.origin)
         for licence in (*data.licences, *data.mask_licences) if licence}
    )  # fmt: skip
    rows = [
        (_plain(licence), "yes" if term_of(licence).public else "no", term_of(licence).why)
        for licence in known
    ]
    table = _table(("licence", "public weights", "why"), rows) + "\n\n" if rows else ""
    if said:
        end = "These weights may not be given to the public:\n\n" + "\n".join(
            f"- {_plain(line)}" for line in said
        )
    else:
        end = (
            "No terms of the data stand against public weights. Which licence they get is for"
            " those who trained them to say."
        )
    return f"## Terms\n\n{table}{end}"


def _short(digest: str | None) -> str:
    return f"`{digest[:16]}`" if digest else "not known"


def _plain(text: str) -> str:
    """Keep text of data sets from being Markdown or HTML."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
