"""CheXmask: lung masks of five public data sets as runs of pixels in CSV files.

Gaggion et al. 2024, https://doi.org/10.1038/s41597-024-03358-1; columns and runs as in its authors'
code, https://github.com/ngaggion/CheXmask-Database: pairs of start (from 1) and length, row by row.
The lungs end at the heart's border. A file of 250,000 rows has several GB, so only the place of
each row is kept.
"""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data_prep.tables import MAX_LINE, Line, Table, without_suffix
from xmae_jax.data.film import FilmError
from xmae_jax.data.records import DataError

LICENCE = "CC-BY-4.0"
MIN_DICE = 0.7  # of "Dice RCA (Mean)": what its authors advise
_MAX_PIXELS = 100_000_000
_DICE = "Dice RCA (Mean)"
_PARTS = ("Left Lung", "Right Lung", "Height", "Width")
# The column of a data set's image names, and how many last parts of a path (but for the suffix)
# make a name.
_NAMES = {
    "dicom_id": 1,  # MIMIC-CXR-JPG
    "Path": 3,  # CheXpert: patient/study/view
    "Image Index": 1,  # ChestX-ray14
    "ImageID": 1,  # PadChest
    "image_id": 1,  # VinDr-CXR
    "Image ID": 1,  # the name in CheXmask's own description
}


@dataclass(frozen=True, slots=True)
class RunLength:
    """One film's lungs: the place of a row in a CSV file."""

    path: Path
    columns: tuple[int, ...]  # of the left lung, the right lung, the height and the width
    start: int  # bytes
    length: int

    def _bytes(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)

    def digest(self) -> str:
        """Hash the row."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def read(self) -> Bool[np.ndarray, "h w"]:
        """Decode the union of both lungs; raise FilmError if a run lies outside of the film."""
        csv.field_size_limit(MAX_LINE)
        try:
            (cells,) = csv.reader(
                self._bytes().decode().splitlines(keepends=True), strict=True, skipinitialspace=True
            )
            left, right, *sides = (cells[column] for column in self.columns)
            height, width = (int(float(side)) for side in sides)
            if min(height, width) < 1 or height * width > _MAX_PIXELS:
                raise ValueError("size")
            flat = np.zeros(height * width, bool)
            for text in (left, right):
                _fill(flat, text)
        except (OSError, ValueError, IndexError, OverflowError, csv.Error):
            raise FilmError("a row of CheXmask is no mask") from None
        return flat.reshape(height, width)


def _fill(flat: np.ndarray, text: str) -> None:
    runs = np.array(text.split(), np.int64).reshape(-1, 2)
    starts, ends = runs[:, 0] - 1, runs.sum(1) - 1
    if runs.size and (starts.min() < 0 or runs[:, 1].min() < 0 or ends.max() > flat.size):
        raise ValueError("run")
    for start, end in zip(starts, ends, strict=True):
        flat[start:end] = True


def read_chexmask(
    path: Path, names: Callable[[int], dict[str, str]]
) -> tuple[dict[str, RunLength], str]:
    """Find each film's row in a file of CheXmask; return film -> row, and a line of counts.

    names: gives name -> film for names of so many parts of a path. A row whose quality is not known
    or below MIN_DICE counts as absent. Raises DataError if the file is not CheXmask's.
    """
    if path.suffix == ".gz":
        raise DataError(f"{path}: unpack it first, for its rows are read one by one")
    table = Table(path, required=(_DICE, *_PARTS))
    column = next((name for name in _NAMES if name in table.columns), None)
    if column is None:
        raise DataError(f"{path}, line 1: none of the columns {', '.join(_NAMES)}")
    places = tuple(table.columns.index(name) for name in _PARTS)
    films = names(_NAMES[column])
    found: dict[str, RunLength] = {}
    poor = absent = 0
    for line in table:
        film = films.get(_name(line.id(column), _NAMES[column]))
        if not film:
            absent += 1
        elif film in found:
            raise line.error(column, "a second row of one image")
        elif _dice(line) < MIN_DICE:
            poor += 1
        else:
            found[film] = RunLength(path, places, line.start, line.end - line.start)
    return found, (
        f"CheXmask: {len(found)} masks, {poor} left out for a Dice below {MIN_DICE},"
        f" {absent} rows without a film"
    )


def _name(text: str, depth: int) -> str:
    return without_suffix("/".join(text.replace("\\", "/").split("/")[-depth:]))


def _dice(line: Line) -> float:
    text = line.cells[_DICE].strip()
    try:
        return float(text or 0)
    except ValueError:
        raise line.error(_DICE, "not a number") from None
