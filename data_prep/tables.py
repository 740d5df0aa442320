"""CSV files as rows of named cells; every error names the file, the line and the column.

A cell's content never stands in an error: it may say who the patient is.
"""

import codecs
import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from xmae_jax.data.findings import FINDINGS, find
from xmae_jax.data.people import UNREADABLE, age_of, sex_of
from xmae_jax.data.records import NO_REPORT, DataError, Report

Labels = tuple[float, ...]
UNKNOWN: Labels = (math.nan,) * len(FINDINGS)  # one NaN object, so that label tuples compare

MAX_TEXT = 100_000  # characters of a report section
_MAX_WORD = 256  # of a view, a source, a licence
_MAX_ID = 4096  # of an id or a path
MAX_LINE = 4_000_000  # bytes; a row of run-length masks has about 100,000
_PICTURES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
VALUES = {"": math.nan}
VALUES |= {str(number): float(number) for number in (1, 0, -1, 1.0, 0.0, -1.0)}


def bounded(report: Report) -> Report:
    """Cut the sections of a report that is no table's, so that one file cannot fill a shard."""
    return cast(Report, {name: text.strip()[:MAX_TEXT] for name, text in report.items()})


def without_suffix(name: str) -> str:
    """Cut a picture's suffix off a name or a path; the last number of a UID is none."""
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in _PICTURES else name


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table; columns are found by name."""

    path: Path
    number: int  # of the line where the row begins, from 1
    start: int  # of the row in the file, in bytes; for the random access that masks need
    end: int
    cells: dict[str, str]

    def error(self, column: str, what: str) -> DataError:
        """Make the error that names this row and a column."""
        return DataError(f"{self.path}, line {self.number}, column {column}: {what}")

    def id(self, column: str) -> str:
        """Return an id or a path, blank where the table has no such column."""
        return self._text(column, _MAX_ID)

    def word(self, column: str) -> str:
        """Return a short text that is stored, so that no spreadsheet may take it for a formula."""
        text = self._text(column, _MAX_WORD)
        if len(text) > 1 and text[0] in "=+-@":
            raise self.error(column, "begins like a formula of a spreadsheet")
        return text

    def sex(self, column: str) -> str:
        """Read a sex: "F", "M", or blank where the table has no such column or does not tell."""
        sex = sex_of(self.cells.get(column, ""))
        if sex is None:
            raise self.error(column, "no sex, such as F, M, female, male, blank")
        return sex

    def age(self, column: str) -> float | None:
        """Read an age in years, plausible or not; None where there is none, else UNREADABLE."""
        age = age_of(self.cells.get(column, ""))
        if age is None:
            return UNREADABLE
        return None if math.isnan(age) else age

    def section(self, column: str) -> str:
        """Return a section of a report."""
        return self._text(column, MAX_TEXT)

    def report(self) -> Report:
        """Return the sections of a report, by the columns that there are."""
        return cast(Report, {name: self.section(name) for name in NO_REPORT})

    def value(self, column: str) -> float:
        """Parse a label: blank is unknown (NaN), else 1, 0 or -1."""
        value = VALUES.get(self.cells[column].strip())
        if value is None:
            raise self.error(column, "neither blank nor 1, 0 or -1")
        return value

    def _text(self, column: str, limit: int) -> str:
        text = self.cells.get(column, "").strip()
        if len(text) > limit:
            raise self.error(column, f"more than {limit} characters")
        return text


class Table:
    """A CSV file (.csv or .csv.gz) with a header, read row by row as often as it is iterated."""

    def __init__(self, path: Path, *, required: tuple[str, ...] = ()) -> None:
        """Read the header; raise DataError if a column that is required is missing."""
        self.path = path
        self.columns = self._header()
        for name in required:
            if name not in self.columns:
                where = ", line 1" if self.columns else ": empty"
                raise DataError(f"{path}{where}: no column {name!r}")

    def __iter__(self) -> Iterator[Line]:
        lines = _rows(self.path)
        next(lines)
        rows = 0
        for number, start, end, cells in lines:
            if not cells:  # a blank line
                continue
            if len(cells) != len(self.columns):
                raise DataError(
                    f"{self.path}, line {number}: {len(self.columns)} columns expected, and not"
                    f" {len(cells)}"
                )
            rows += 1
            yield Line(self.path, number, start, end, dict(zip(self.columns, cells, strict=True)))
        if not rows:
            raise DataError(f"{self.path}: a header and no row")

    def _header(self) -> tuple[str, ...]:
        _, _, _, cells = next(_rows(self.path), (1, 0, 0, []))
        names = tuple(name.strip() for name in cells)
        if len(names) == 1 and re.search(r"[;\t]", names[0]):
            raise DataError(f"{self.path}, line 1: columns are not separated by commas")
        for place, name in enumerate(names, start=1):
            if (
                names.index(name) < place - 1
            ):  # by its number: a file without a header has data here
                raise DataError(f"{self.path}, line 1, column {place}: its name stands twice")
        return names

    def findings(self, *, but: tuple[str, ...] = ()) -> Callable[[Line], Labels]:
        """Make the function that reads a row's label vector; `but`: columns that are none."""
        columns: dict[int, str] = {}
        for name in self.columns:
            index = None if name in but else find(name)
            if index is None:
                continue
            if index in columns:
                raise DataError(
                    f"{self.path}, line 1: columns {columns[index]!r} and {name!r} are one finding"
                )
            columns[index] = name
        known: dict[Labels, Labels] = {UNKNOWN: UNKNOWN}  # most rows say what others say: one tuple

        def read(line: Line) -> Labels:
            values = list(UNKNOWN)
            for index, name in columns.items():
                values[index] = line.value(name)
            labels = tuple(values)
            return known.setdefault(labels, labels)

        return read


def _rows(path: Path) -> Iterator[tuple[int, int, int, list[str]]]:
    """Yield (line, first byte, end, cells) of each row of a file, the header first."""
    if not path.is_file():  # a pipe would block
        raise DataError(f"{path}: not a file")
    csv.field_size_limit(MAX_LINE)
    lines = _Lines(path)
    try:
        with lines:
            reader = csv.reader(lines, strict=True, skipinitialspace=True)
            while True:
                number, start = lines.number + 1, lines.end
                cells = next(reader, None)
                if cells is None:
                    return
                yield number, start, lines.end, cells
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.number}: not CSV ({error})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None


class _Lines:
    """The lines of a UTF-8 file, decoded one by one, which tell where they stand."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.end = path, 0, 0

    def __enter__(self) -> None:
        packed = self.path.suffix == ".gz"
        self._file: io.BufferedIOBase = gzip.open(self.path) if packed else self.path.open("rb")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise self._error("UTF-16: save it as CSV UTF-8")
        if len(line) == MAX_LINE:
            raise self._error(f"more than {MAX_LINE} bytes")
        if b"\0" in line:
            raise self._error("a NUL byte: not a text file, or damaged")
        self.end += len(line)
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise self._error("not UTF-8: save it as CSV UTF-8") from None

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.path}, line {self.number}: {what}")
