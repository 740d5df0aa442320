"""`predictions.csv`: a line for each film, from which every score is computed.

Columns: split, source_index, index (the film's place in its data), id, patient, study, view,
source, sex, age, then for each finding `logit:NAME` with 9 significant digits, which is every bit
of a float32, and `label:NAME`: 1 present, 0 absent, u uncertain, empty unknown.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

_SPLIT = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}")
_LABELS = {"1": 1.0, "0": 0.0, "u": -1.0, "": np.nan}


class PredictionsError(ValueError):
    """Predictions that cannot be scored; main exits 65."""


COLUMNS = tuple("split source_index index id patient study view source sex age".split())


class Film(NamedTuple):
    """What a line says of its film, besides scores and labels; in the order of the columns."""

    split: str
    source_index: int
    place: int
    id: str
    patient: str
    study: str
    view: str
    source: str
    sex: str
    age: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Films with a score and a label for each finding."""

    findings: tuple[str, ...]
    films: tuple[Film, ...]
    logits: Float64[np.ndarray, "n c"]
    labels: Float64[np.ndarray, "n c"]
    """1 present, 0 absent, -1 uncertain, NaN unknown."""

    @property
    def known(self) -> Bool[np.ndarray, "n c"]:
        """Tell which labels are 1 or 0; only these are scored."""
        return self.labels >= 0

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Predictions:
        """Return some of the films."""
        places = np.arange(len(self.films))[rows]
        films = tuple(self.films[i] for i in places)
        return Predictions(self.findings, films, self.logits[places], self.labels[places])

    def of_split(self, split: str) -> Predictions:
        """Return the films of one split."""
        return self.take(np.array([film.split == split for film in self.films], bool))

    def patients(self) -> Int64[np.ndarray, " n"]:
        """Number the patients; a film without one is a patient of its own."""
        return numbered((f.patient, "" if f.patient else f.id) for f in self.films)

    def studies(self) -> Int64[np.ndarray, " n"]:
        """Number the studies; a film without one is a study of its own."""
        return numbered(
            (f.patient, f.study, "" if f.patient and f.study else f.id) for f in self.films
        )


def numbered(keys: Iterable[Any]) -> Int64[np.ndarray, " n"]:
    """Number keys by their first place; equal ones have one number."""
    number: dict[Any, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], np.int64)


def split_of(cell: str, where: str) -> str:
    """Return a cell that names a split, and so a folder; PredictionsError if it can be neither."""
    if _SPLIT.fullmatch(cell) is None:
        raise PredictionsError(
            f"{where}, split: not 1 to 64 letters, digits, _, - and points, no point first"
        )
    return cell


def count(cell: str) -> int:
    """Read a number from 0 to below 2**31; ValueError if it is none."""
    value = int(cell)
    if not 0 <= value < 1 << 31:
        raise ValueError
    return value


def to_csv(
    findings: Sequence[str], rows: Iterable[tuple[Film, Sequence[float], Sequence[float]]]
) -> str:
    """Write (film, logits, labels) of each film."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"{kind}:{name}" for name in findings for kind in ("logit", "label")]
    writer.writerow([*COLUMNS, *named])
    for film, logits, labels in rows:
        cells = []
        for logit, label in zip(logits, labels, strict=True):
            cells += [f"{logit:.9g}", "" if np.isnan(label) else "u" if label < 0 else f"{label:g}"]
        writer.writerow([*film[:-1], "" if np.isnan(film.age) else f"{film.age:g}", *cells])
    return text.getvalue()


def from_csv(text: str, *, name: str) -> Predictions:
    """Read predictions; `name` is what messages call them.

    Raises PredictionsError naming line and column of a value that is none, of a score that is not
    a number, of a film or a finding that stands there twice, and of what is not CSV.
    """
    lines = csv.reader(io.StringIO(text))
    try:
        header, *rows = list(lines) or [[]]
    except csv.Error as error:
        raise PredictionsError(f"{name}, line {lines.line_num}: not CSV ({error})") from None
    findings = tuple(c.removeprefix("logit:") for c in header if c.startswith("logit:"))
    named = [f"{kind}:{finding}" for finding in findings for kind in ("logit", "label")]
    if not findings or header != [*COLUMNS, *named]:
        missing = ", ".join(c for c in (*COLUMNS, *named) if c not in header)
        told = f"without {missing}" if missing else "in another order, or more of them"
        raise PredictionsError(f"{name}: its columns are not those of predictions.csv: {told}")
    if twice := next((one for one in findings if findings.count(one) > 1), None):
        raise PredictionsError(f"{name}, line 1: logit:{twice} stands there twice")
    if not rows:
        raise PredictionsError(f"{name}: a header and no film")
    films, logits, labels = [], [], []
    seen: dict[tuple[str, int, int], int] = {}
    for number, line in enumerate(rows, 2):
        where = f"{name}, line {number}"
        if len(line) != len(header):
            raise PredictionsError(f"{where}: {len(line)} values in {len(header)} columns")
        film = _film(line, where)
        first = seen.setdefault((film.split, film.source_index, film.place), number)
        if first != number:
            raise PredictionsError(f"{where}: the film of line {first} again")
        films.append(film)
        logits.append(_logits(line[len(COLUMNS) :: 2], findings, where))
        labels.append(_label_row(line[len(COLUMNS) + 1 :: 2], findings, where))
    shape = (len(films), len(findings))
    return Predictions(
        findings,
        tuple(films),
        np.array(logits, np.float64).reshape(shape),
        np.array(labels, np.float64).reshape(shape),
    )


def _film(line: Sequence[str], where: str) -> Film:
    film = Film._make(line[: len(COLUMNS)])
    try:
        age = float(film.age) if film.age else np.nan
        places = count(film.source_index), count(film.place)
    except ValueError:
        raise PredictionsError(f"{where}: source_index, index or age is no number") from None
    split = split_of(film.split, where)
    return film._replace(split=split, source_index=places[0], place=places[1], age=age)


def _logits(cells: Sequence[str], findings: Sequence[str], where: str) -> list[float]:
    values = []
    for cell, finding in zip(cells, findings, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise PredictionsError(f"{where}, logit:{finding}: the score is no finite number")
        values.append(value)
    return values


def _label_row(cells: Sequence[str], findings: Sequence[str], where: str) -> list[float]:
    for cell, finding in zip(cells, findings, strict=True):
        if cell not in _LABELS:
            raise PredictionsError(f"{where}, label:{finding}: none of 1, 0, u and nothing")
    return [_LABELS[cell] for cell in cells]
