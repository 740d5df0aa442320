"""The numbers of `report.html`: counts, remarks and charts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.charts import Bars, Histogram, bars, histogram
from data_prep.contours import MIN_QUALITY
from data_prep.pictures import has_writing
from xmae_jax.data.index import Entry
from xmae_jax.data.people import AGE_BANDS, age_band
from xmae_jax.data.records import FINDINGS, SPLITS, Record, decode_image, decode_mask

_SEXES = {"F": "female", "M": "male", "": "sex unknown"}
_NO_AGE = "age unknown"


@dataclass(frozen=True)
class Known:
    """What is known of one finding in the films of one split."""

    present: int
    absent: int
    uncertain: int
    unknown: int

    @property
    def prevalence(self) -> float | None:
        """Share of films with the finding among those with a sure answer; None without any."""
        sure = self.present + self.absent
        return self.present / sure if sure else None


@dataclass(frozen=True)
class Measures:
    """What was measured on some films, a value a film."""

    grey: list[float] = field(default_factory=list)  # mean over the film, 0 to 255
    lungs: list[float] = field(default_factory=list)  # share of the film, where there is a mask
    spacing: list[float] = field(default_factory=list)  # mm of a stored pixel; NaN where unknown
    levels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # pixels of each

    def add(self, record: Record) -> None:
        """Measure one film."""
        top, left, bottom, right = record["valid_box"]
        pixels = decode_image(record["image"])
        levels = np.bincount(pixels[top:bottom, left:right].ravel(), minlength=256)
        self.levels[:] += levels
        self.grey.append(float(levels @ np.arange(256) / levels.sum()))
        self.spacing.append(float(record["spacing"].mean()))
        if record["lung_mask"] is not None:
            of_film = (bottom - top) * (right - left) / pixels.size
            self.lungs.append(float(decode_mask(record["lung_mask"]).mean() / of_film))


def percent(share: float) -> str:
    """Write a share so that a few are not none, and nearly all are not all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.1 or 0.9 < share < 1 else f"{100 * share:.0f} %"


def made(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tell how the data set was made, name and value."""
    arguments = dict(manifest["arguments"])
    rows = [("key of the ids (its fingerprint)", arguments.pop("key_fingerprint"))]
    for name, value in sorted(arguments.items()):
        if name == "exclude":  # digests of other sets
            value = f"{len(value)} data sets" if value else "nothing"
        rows.append((name.replace("_", " "), f"{value}"))
    for name, value in sorted(manifest["generator"].get("phantoms", {}).items()):
        rows.append((f"phantoms: {name}", f"{value}"))
    return rows + sorted(manifest["versions"].items())


def splits(entries: Sequence[Entry]) -> list[tuple[str, int, int, int]]:
    """Count films, patients and studies of each split."""
    rows = []
    for split in SPLITS:
        of_split = [entry for entry in entries if entry.split == split]
        patients, studies = ({getattr(e, name) for e in of_split} for name in ("patient", "study"))
        rows.append((split, len(of_split), len(patients), len(studies)))
    return rows


def people(entries: Sequence[Entry]) -> list[tuple[str, list[int]]]:
    """Count films by sex and by age in each split that has films; nothing if neither is known."""
    if not any(entry.sex or not math.isnan(entry.age) for entry in entries):
        return []
    held = {entry.split for entry in entries}
    counts = Counter((entry.split, _SEXES[entry.sex]) for entry in entries)
    counts += Counter((entry.split, _band(entry.age)) for entry in entries)
    names = [*_SEXES.values(), *(f"{band} years" for band in AGE_BANDS), _NO_AGE]
    return [(name, [counts[split, name] for split in SPLITS if split in held]) for name in names]


def _band(age: float) -> str:
    return _NO_AGE if math.isnan(age) else f"{age_band(age)} years"


def findings(counts: Mapping[str, Any]) -> list[tuple[str, dict[str, Known]]]:
    """Count what is known of each finding in each split; findings never named are left out."""
    rows = []
    for finding in FINDINGS:
        by_split = {}
        for split, films in counts["splits"].items():
            known = counts["labels"].get(split, {}).get(finding, {})
            one, none, unsure = (known.get(value, 0) for value in ("1", "0", "-1"))
            by_split[split] = Known(one, none, unsure, films - one - none - unsure)
        if any(known.unknown < counts["splits"][split] for split, known in by_split.items()):
            ordered = {split: by_split[split] for split in SPLITS if split in by_split}
            rows.append((finding, ordered))
    return rows


def remarks(entries: Sequence[Entry], counts: Mapping[str, Any]) -> list[str]:
    """Say what a reader should look at first."""
    told = []
    for kind, count in counts["duplicates_across_splits"].items():
        told.append(
            f"Pairs of films that show the same ({kind}) in two splits: {count:,}. A score on"
            " such films says little; build again with --duplicates=drop."
        )
    rejected, files = counts["rejected"], counts["films"] + counts["rejected"]
    if rejected:
        told.append(f"Files not used: {rejected:,} of {files:,} ({percent(rejected / files)}).")
    bare = sum(entry.mask_source == "none" for entry in entries)
    if bare:
        told.append(f"Films without a lung contour: {bare:,} ({percent(bare / len(entries))}).")
    weak = sum(
        entry.mask_source != "none" and entry.mask_quality < MIN_QUALITY for entry in entries
    )
    if weak:
        told.append(f"Doubtful lung contours (quality under {MIN_QUALITY}): {weak:,}.")
    text = sum(has_writing(entry) for entry in entries)
    if text:
        told.append(f"Films with text in the picture, which may name a patient: {text:,}."
                    " They are blurred here.")  # fmt: skip
    flagged = sum(bool(entry.flags) for entry in entries)
    if flagged:
        told.append(f"Films flagged as unusual: {flagged:,}.")
    for split in SPLITS:
        if split not in counts["splits"]:
            told.append(f"No patient fell into the split {split}.")
    if not counts["labels"] or not findings(counts):
        told.append("There are no labels.")
    for split in SPLITS[1:]:
        rare = [
            name
            for name, known in findings(counts)
            if split in known and known[split].absent and not known[split].present
        ]
        if rare:
            told.append(f"Findings with no case in {split}, so not to be scored there:"
                        f" {', '.join(rare)}.")  # fmt: skip
    return told


def all_bars(entries: Sequence[Entry]) -> list[Bars]:
    """Count films by what their files and tables say of them."""
    return [
        bars("Source", Counter(e.source for e in entries), unnamed="none named"),
        bars("View", Counter(e.view for e in entries), unnamed="unknown",
             gloss="PA and AP: frontal, the beam from behind or in front; L, LL, RL: lateral"),
        bars("Maker of the equipment", Counter(e.vendor for e in entries), unnamed="unknown"),
        bars("Depth of grey in the file", Counter(f"{e.bits} bits" for e in entries),
             unnamed="unknown", gloss="8 bits: 256 grey levels; 12: 4,096; 16: 65,536"),
        bars("Kind of file", Counter(e.kind for e in entries), unnamed="unknown",
             gloss="Of DICOM files with the way in which the picture is packed (transfer syntax)"),
        bars("Origin of the lung contour", Counter(e.mask_source for e in entries),
             unnamed="unknown",
             gloss="Given: drawn by others and handed in; heuristic and model: found by this"
                   " program; rectangle: a fixed box; none: without"),
    ]  # fmt: skip


def histograms(entries: Sequence[Entry], measures: Measures) -> list[Histogram]:
    """Draw how sizes and masks are spread over all films, and what was measured over some."""
    drawn = len(measures.grey)
    some = f"{drawn:,} films drawn at random" if drawn < len(entries) else "All films"
    masked = [entry.mask_quality for entry in entries if entry.mask_source != "none"]
    widths, heights = [float(e.width) for e in entries], [float(e.height) for e in entries]
    grey = "0 black, 255 white"
    found = [
        histogram("Width of the film in the file", widths, gloss="Pixels"),
        histogram("Height of the film in the file", heights, gloss="Pixels"),
        histogram("Quality of the lung contour", masked, high=1.0, bins=20,
                  gloss="1: like the two lungs of a frontal film in area, symmetry and place"),
        histogram("Lungs as a share of the film", measures.lungs, gloss=some),
        histogram("Mean grey of a film", measures.grey, high=255.0, gloss=f"{some}; {grey}"),
        _levels(measures, gloss=f"{some}, all pixels; {grey}"),
        histogram("Size of a stored pixel", measures.spacing, gloss=f"{some} of known size; mm"),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def _levels(measures: Measures, *, gloss: str) -> Histogram:
    of = int(measures.levels.sum())
    return Histogram(
        title="Grey values",
        gloss=gloss,
        low=0.0,
        high=255.0,
        counts=tuple(int(count) for count in measures.levels.reshape(32, 8).sum(1)),
        median=float(np.searchsorted(measures.levels.cumsum(), of / 2)),
    )
