"""What stands in an input folder: films, masks, labels and reports, joined by name."""

import csv
import hashlib
import math
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from xmae_jax.data.manifest import file_digest
from xmae_jax.data.records import FINDINGS, DataError, Report

SKIPPED = frozenset({"labels.csv", "reports.csv", "phantoms.json", "rejected.csv", "manifest.json"})
_MAX_TEXT = 100_000  # characters of a report section


@dataclass(frozen=True)
class Row:
    """One row of labels.csv."""

    patient: str = ""
    study: str = ""
    view: str = ""
    source: str = ""
    mask_source: str = ""
    split: str = ""
    findings: tuple[float, ...] = (math.nan,) * len(FINDINGS)

    @property
    def labels(self) -> np.ndarray:
        """The label vector: 1 present, 0 absent, -1 uncertain, NaN unknown."""
        return np.array(self.findings, np.float32)


@dataclass(frozen=True)
class Inputs:
    """Everything that a build reads, by path relative to the folder of films."""

    root: Path
    films: tuple[str, ...]  # sorted, POSIX separators
    masks: dict[str, Path] = field(default_factory=dict)  # film -> mask
    rows: dict[str, Row] = field(default_factory=dict)  # film -> labels
    reports: dict[str, Report] = field(default_factory=dict)  # study -> report
    tables: tuple[Path, ...] = ()  # other files read, for the digest
    orphans: int = 0  # rows of labels.csv without a film


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """List the films under a folder (its `images/` if it has one) and join what belongs to them.

    Masks, labels and reports default to `lung_masks/`, `labels.csv` and `reports.csv` beside
    them. Raises DataError naming file and line for a table that cannot be used.
    """
    folder = folder.resolve()
    root = folder / "images" if (folder / "images").is_dir() else folder
    masks = masks or _default(folder / "lung_masks")
    labels = labels or _default(folder / "labels.csv")
    reports = reports or _default(folder / "reports.csv")
    phantoms = _default(folder / "phantoms.json")
    known = {path.resolve() for path in (masks, labels, reports) if path is not None}
    films = _walk(root, known)
    rows, orphans = read_labels(labels, root, films) if labels else ({}, 0)
    return Inputs(
        root=root,
        films=films,
        masks=_join_masks(masks, films) if masks else {},
        rows=rows,
        reports=read_reports(reports) if reports else {},
        tables=tuple(path for path in (labels, reports, phantoms) if path is not None),
        orphans=orphans,
    )


def _default(path: Path) -> Path | None:
    return path if path.exists() else None


def _walk(root: Path, known: set[Path]) -> tuple[str, ...]:
    """List what may be a film: every entry but hidden ones, our own tables, and the masks."""
    found = []
    for directory, folders, files in os.walk(root):
        here = Path(directory)
        folders[:] = [
            name for name in folders if name[0] != "." and (here / name).resolve() not in known
        ]
        for name in files:
            path = here / name
            if name[0] != "." and name not in SKIPPED and path.resolve() not in known:
                found.append(path.relative_to(root).as_posix())
    return tuple(sorted(found))


def _join_masks(folder: Path, films: tuple[str, ...]) -> dict[str, Path]:
    """Find each film's mask: the same relative path but for the suffix, else the same stem.

    A stem that two films share is no name: the mask of one would be laid over the other.
    """
    masks: dict[str, Path] = {}
    stems: dict[str, list[Path]] = {}
    for name in _walk(folder, set()):
        path = PurePosixPath(name)
        masks[path.with_suffix("").as_posix()] = folder / name
        stems.setdefault(path.stem, []).append(folder / name)
    film_stems: dict[str, int] = {}
    for film in films:
        stem = PurePosixPath(film).stem
        film_stems[stem] = film_stems.get(stem, 0) + 1
    joined = {}
    for film in films:
        path = PurePosixPath(film)
        mask = masks.get(path.with_suffix("").as_posix())
        candidates = stems.get(path.stem, [])
        if mask is None and film_stems[path.stem] == len(candidates) == 1:
            mask = candidates[0]
        if mask is not None:
            joined[film] = mask
    return joined


def _read_table(path: Path, required: str) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV as (line, row) with columns matched by name; DataError names file and line."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="strict") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            if required not in names:
                raise DataError(f"{path}: no column {required!r}")
            if len(set(names)) < len(names):
                raise DataError(f"{path}: a column name stands twice")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(names)} columns expected"
                    )
                rows.append((reader.line_num, row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from None


def read_labels(path: Path, root: Path, films: tuple[str, ...]) -> tuple[dict[str, Row], int]:
    """Read labels.csv; return film -> row and the number of rows whose film is not there.

    `image` is relative to the table's folder, or else to the folder of films. A table of which no
    row has a film is an error: every film would pass for a patient of its own.
    """
    rows: dict[str, Row] = {}
    known = set(films)
    orphans = 0
    for line, row in _read_table(path, "image"):
        image = row["image"].strip()
        film = _relative(path.parent.resolve(), image, root)
        film = film if film in known else _relative(root, image, root)
        if film not in known:
            orphans += 1
            continue
        made = Row(
            patient=row.get("patient_id", "").strip(),
            study=row.get("study_id", "").strip(),
            view=row.get("view", "").strip()[:32],
            source=row.get("source", "").strip(),
            mask_source=row.get("mask_source", "").strip(),
            split=row.get("split", "").strip(),
            findings=tuple(_finding(path, line, name, row.get(name, "")) for name in FINDINGS),
        )
        if film in rows and repr(rows[film]) != repr(made):  # repr: NaN is not equal to itself
            raise DataError(f"{path}, line {line}: a second row of one image says something else")
        rows[film] = made
    if orphans and films and not rows:
        raise DataError(f"{path}: none of its {orphans} rows has a film in {root}")
    return rows, orphans


def _relative(base: Path, image: str, root: Path) -> str:
    path = Path(os.path.normpath(base / image))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""


def _finding(path: Path, line: int, name: str, text: str) -> float:
    """Parse one cell: blank is unknown (NaN), else 1, 0 or -1."""
    text = text.strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in (0.0, 1.0, -1.0):
        raise DataError(f"{path}, line {line}, column {name}: neither blank nor 1, 0 or -1")
    return value


def read_reports(path: Path) -> dict[str, Report]:
    """Read reports.csv as study -> sections; a study that stands twice must say the same."""
    reports: dict[str, Report] = {}
    for line, row in _read_table(path, "study_id"):
        study = row["study_id"].strip()
        made = Report(
            findings=row.get("findings", "").strip()[:_MAX_TEXT],
            impression=row.get("impression", "").strip()[:_MAX_TEXT],
        )
        if reports.get(study, made) != made:
            raise DataError(f"{path}, line {line}: a second row of one study says something else")
        reports[study] = made
    return reports


def sha256_of(path: Path) -> str:
    """Hash a regular file; anything else (a pipe would block) is named by its kind."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        return file_digest(path)
    except OSError as error:
        return type(error).__name__


def digest_of(entries: dict[str, Any]) -> str:
    """Hash name -> digest pairs in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(entries):
        whole.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
