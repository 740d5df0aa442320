"""What stands in an input folder: films, masks, labels and reports, joined by name."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chexmask import LICENCE, RunLength, read_chexmask
from data_prep.given import Mask, Parts
from data_prep.tables import UNKNOWN, VALUES, Labels, Line, Table, without_suffix
from xmae_jax.data.findings import FINDINGS, find
from xmae_jax.data.manifest import file_digest
from xmae_jax.data.people import UNREADABLE, plausible
from xmae_jax.data.records import DataError, Report

SKIPPED = frozenset({"labels.csv", "reports.csv", "phantoms.json", "rejected.csv", "manifest.json"})
AMBIGUOUS = ""  # in place of a film: two have this name
SPLIT_NAMES = {"": "", "train": "train", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(
    ("val", "valid", "validate", "validation", "dev", "development"), "val"
)
# Of labels.csv, beside the findings.
_COLUMNS = tuple(
    "image patient_id study_id view source mask_source split licence mask_licence sex age".split()
)


@dataclass(frozen=True, slots=True)
class Row:
    """What the tables say about one film."""

    patient: str = ""
    study: str = ""
    view: str = ""
    source: str = ""
    mask_source: str = ""
    findings: Labels = UNKNOWN
    split: str = ""  # "train", "val" or "test"; empty: by the hash of the patient
    licence: str = ""
    mask_licence: str = ""
    sex: str = ""  # "F" or "M"
    age: float | None = None  # years, plausible or not; or UNREADABLE

    @property
    def labels(self) -> np.ndarray:
        """The label vector: 1 present, 0 absent, -1 uncertain, NaN unknown."""
        return np.array(self.findings, np.float32)


@dataclass(frozen=True)
class Inputs:
    """Everything that a build reads, by path relative to the folder of films."""

    root: Path
    films: tuple[str, ...]  # sorted, POSIX separators
    masks: dict[str, Mask] = field(default_factory=dict)  # film -> mask
    rows: dict[str, Row] = field(default_factory=dict)  # film -> labels
    reports: dict[str, Report] = field(default_factory=dict)  # study -> report
    tables: tuple[Path, ...] = ()  # other files read, for the digest
    orphans: int = 0  # rows of labels without a film
    refused: dict[str, str] = field(default_factory=dict)  # what is not read -> why
    notes: tuple[str, ...] = ()  # what whoever runs the build should know


class Join:
    """The films of a folder, and the rows of its tables as they come in."""

    def __init__(
        self,
        root: Path,
        *,
        skip: Iterable[Path] = (),
        suffixes: tuple[str, ...] = (),
        depth: int = 1,
    ) -> None:
        """List the films.

        skip: files and folders that are none; suffixes: of the films, all if empty; depth: how many
        last parts of a film's path, without its suffix, are its name in the tables.
        """
        self.root, self.depth = root, depth
        self.films, self.refused = walk(root, skip=skip, suffixes=suffixes)
        self.rows: dict[str, Row] = {}
        self.orphans = 0
        self.splits: dict[str, str] = {}  # patient -> split, as far as the tables say
        self._joined = False
        self._rest = 0
        self._names = tails(self.films, depth)

    def film(self, name: str) -> str | None:
        """Find a film by its name in the tables, given without a suffix."""
        return self._names.get(name)

    def add(self, film: str | None, row: Row, line: Line) -> None:
        """Take in what a line says of a film, None if there is no such film."""
        if row.patient and row.split:
            if self.splits.setdefault(row.patient, row.split) != row.split:
                raise line.error("split", "a patient with films in two splits")
        if film is None:
            self.orphans += 1
        elif film == AMBIGUOUS:
            raise DataError(f"{line.path}, line {line.number}: two films have the name of this row")
        elif (before := self.rows.setdefault(film, row)) != row:
            raise line.error(_difference(before, row), "a second row of one image says else")
        else:
            self._joined = True

    def add_rest(self, row_of: Callable[[str], Row | None]) -> None:
        """Give the films that no table names the row that their paths tell, None if they do not.

        Else such a film would pass for a patient of its own, in another split than the patient's.
        """
        for film in self.films:
            if film not in self.rows and (row := row_of(film)) is not None:
                self.rows[film] = row
                self._rest += 1

    def inputs(
        self,
        *,
        tables: Iterable[Path],
        masks: Path | dict[str, Mask] | None = None,
        reports: dict[str, Report] | None = None,
        notes: Iterable[str] = (),
    ) -> Inputs:
        """Put all together; masks: by film, or a folder of them, or a CSV file of CheXmask."""
        if self.orphans and self.films and not self._joined:
            raise DataError(f"{next(iter(tables))}: none of its {self.orphans} rows has a film")
        for film, row in self.rows.items():
            if row.patient in self.splits and not row.split:
                self.rows[film] = replace(row, split=self.splits[row.patient])
        tables, notes = list(tables), list(notes)
        ages = [row.age for row in self.rows.values() if row.age is not None]
        unread = ages.count(UNREADABLE)
        odd = sum(not plausible(age) for age in ages) - unread
        if unread:
            notes.append(f"{unread:,} films have an age that cannot be read: taken for unknown")
        if odd:
            notes.append(f"{odd:,} films have an age that nobody has: taken for unknown")
        if self._rest:
            notes.append(f"{self._rest} films that no table names: patients by the films' names")
        if masks is None or isinstance(masks, dict):
            given = masks or {}
        elif masks.is_dir():
            given = _join_masks(masks, self.films)
        else:
            given, note = read_chexmask(masks, lambda depth: tails(self.films, depth))
            for film in given.keys() & self.rows.keys():
                self.rows[film] = replace(
                    self.rows[film], mask_source="chexmask", mask_licence=LICENCE
                )
            tables.append(masks)
            notes.append(note)
        return Inputs(
            root=self.root,
            films=self.films,
            masks=dict(given),
            rows=self.rows,
            reports=reports or {},
            tables=tuple(tables),
            orphans=self.orphans,
            refused=self.refused,
            notes=tuple(notes),
        )


def _difference(one: Row, other: Row) -> str:
    """Name the columns in which two rows differ."""
    names = [
        item.name
        for item in fields(Row)
        if item.name != "findings" and getattr(one, item.name) != getattr(other, item.name)
    ]
    pairs = zip(FINDINGS, one.findings, other.findings, strict=True)
    return ", ".join(names + [name for name, a, b in pairs if a != b and a is not b])


def walk(
    root: Path, *, skip: Iterable[Path] = (), suffixes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, str]]:
    """List what may be a film, and what is not read, with the reason.

    A film is every entry that is not hidden, nor in `skip`, nor a table of ours, and has one of the
    suffixes if there are any. Links are followed to a file in the same folder only.
    """
    base = os.path.realpath(root)
    skipped = {os.path.relpath(path.resolve(), base) for path in skip}
    films: list[str] = []
    refused: dict[str, str] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(base, folder)))
        except OSError as error:
            refused[folder.rstrip("/") or "."] = f"cannot be read ({type(error).__name__})"
            continue
        for entry in entries:
            name = folder + entry.name
            if entry.name[0] == "." or entry.name in SKIPPED or name in skipped:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name + "/")
            elif suffixes and not entry.name.lower().endswith(suffixes):
                continue
            elif entry.is_symlink() and (why := _why_not(entry.path, base)):
                refused[name] = why
            else:
                films.append(name)
    return tuple(sorted(films)), refused


def _why_not(link: str, base: str) -> str:
    target = os.path.realpath(link)
    if os.path.commonpath((target, base)) != base:
        return "a link that leaves the folder"
    return "a link to a folder" if os.path.isdir(target) else ""


def tails(films: Iterable[str], depth: int) -> dict[str, str]:
    """Map the last parts of each path, without the suffix, to the film, or to AMBIGUOUS."""
    found: dict[str, str] = {}
    for film in films:
        name = without_suffix(film)
        name = name.rpartition("/")[2] if depth == 1 else "/".join(name.split("/")[-depth:])
        found[name] = AMBIGUOUS if name in found else film
    return found


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """List the films under a folder (its `images/` if it has one) and join what belongs to them.

    Masks, labels and reports default to `lung_masks/`, `labels.csv` and `reports.csv` beside
    them. Raises DataError naming file, line and column of a table that cannot be used.
    """
    folder = folder.resolve()
    root = folder / "images" if (folder / "images").is_dir() else folder
    root = root.resolve()
    masks = masks or _default(folder / "lung_masks")
    labels = labels or _default(folder / "labels.csv")
    reports = reports or _default(folder / "reports.csv")
    phantoms = _default(folder / "phantoms.json")
    join = Join(root, skip=[path for path in (masks, labels, reports) if path is not None])
    notes = read_labels(labels, join) if labels else []
    return join.inputs(
        tables=[path for path in (labels, reports, phantoms) if path is not None],
        masks=masks,
        reports=read_reports(reports) if reports else {},
        notes=notes,
    )


def _default(path: Path) -> Path | None:
    return path if path.exists() else None


def _join_masks(folder: Path, films: tuple[str, ...]) -> dict[str, Mask]:
    """Find each film's mask: the same relative path but for the suffix, else the same stem.

    A stem that two films share is no name: the mask of one would be laid over the other.
    """
    names, _ = walk(folder)
    masks = {without_suffix(name): name for name in names}
    stems, film_stems = tails(names, 1), tails(films, 1)
    joined: dict[str, Mask] = {}
    for film in films:
        name = without_suffix(film)
        stem = name.rpartition("/")[2]
        mask = masks.get(name)
        if mask is None and film_stems.get(stem) == film:
            mask = stems.get(stem)
        if mask:
            joined[film] = folder / mask
    return joined


def read_labels(path: Path, join: Join) -> list[str]:
    """Read labels.csv into a join; return notes on columns that look like findings but are none.

    `image` is relative to the table's folder, or else to the folder of films.
    """
    table = Table(path, required=("image",))
    findings = table.findings(but=_COLUMNS)
    unknown = {name for name in table.columns if name not in _COLUMNS and find(name) is None}
    filled: set[str] = set()
    known = dict(zip(join.films, join.films, strict=True))
    base = path.parent.resolve()
    for line in table:
        image = line.id("image")
        film = known.get(_relative(base, image, join.root))
        film = film or known.get(_relative(join.root, image, join.root))
        row = Row(
            patient=line.id("patient_id"),
            study=line.id("study_id"),
            view=line.word("view")[:32],
            source=line.word("source"),
            mask_source=line.word("mask_source"),
            findings=findings(line),
            split=split_name(line, "split"),
            licence=line.word("licence"),
            mask_licence=line.word("mask_licence"),
            sex=line.sex("sex"),
            age=line.age("age"),
        )
        join.add(film, row, line)
        unknown -= {name for name in unknown if line.cells[name].strip() not in VALUES}
        filled |= {name for name in unknown if line.cells[name].strip()}
    return [
        f"{path.name}: column {name!r} looks like a finding, but the list has none of this name"
        for name in table.columns
        if name in unknown & filled
    ]


def split_name(line: Line, column: str) -> str:
    """Read the split that a table names; blank where it names none."""
    name = SPLIT_NAMES.get(line.cells.get(column, "").strip().lower())
    if name is None:
        raise line.error(column, "neither train, val nor test")
    return name


def _relative(base: Path, image: str, root: Path) -> str:
    path = os.path.normpath(os.path.join(base, image))
    return path[len(str(root)) + 1 :] if path.startswith(f"{root}/") else ""


def read_reports(path: Path) -> dict[str, Report]:
    """Read reports.csv as study -> sections; a study that stands twice must say the same."""
    reports: dict[str, Report] = {}
    for line in Table(path, required=("study_id",)):
        study = line.id("study_id")
        made = line.report()
        if reports.setdefault(study, made) != made:
            raise line.error("study_id", "a second row of one study says something else")
    return reports


def sha256_of(path: Path) -> str:
    """Hash a regular file; anything else (a pipe would block) is named by its kind."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        return file_digest(path)
    except OSError as error:
        return type(error).__name__


def mask_digest(mask: Mask) -> str:
    """Hash a mask of any form."""
    if isinstance(mask, RunLength):
        return mask.digest()
    paths = mask.paths if isinstance(mask, Parts) else (mask,)
    return " ".join(sha256_of(path) for path in paths)


def digest_of(entries: dict[str, Any]) -> str:
    """Hash name -> digest pairs in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(entries):
        whole.update(f"{name}\0{entries[name]}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
