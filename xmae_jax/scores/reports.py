"""`predictions.csv` of reports: a line for each study, from which every score is computed.

Columns: split, source_index, index (the study's place in its data), id, patient, study, source,
then the sections that are scored, the form that they were brought into and what became of marks
of de-identification there (both by the names of data/text.py), what was generated, its reference,
how many tokens were generated, and whether texts alike stand in the training data (1, 0, empty
where those are not known), and for each finding of the labeller `label:NAME` as the films' own labels have it:
1 present, 0 absent, u uncertain, empty unknown.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from xmae_jax.scores.agreement import NAMES
from xmae_jax.scores.predictions import PredictionsError, count, numbered, split_of

COLUMNS = (
    "split source_index index id patient study source sections normalisation marks generated"
    " reference tokens generated_in_training reference_in_training"
).split()
_NAMED = tuple(f"label:{name}" for name in NAMES)
_LABELS = {"1": 1.0, "0": 0.0, "u": -1.0, "": np.nan}
_FLAGS = {"1": True, "0": False, "": None}


class Written(NamedTuple):
    """What a line says; in the order of the columns."""

    split: str
    source_index: int
    place: int
    id: str
    patient: str
    study: str
    source: str
    sections: str
    """Which sections of reports text and reference hold, a blank between them."""
    normalisation: str
    marks: str
    generated: str
    reference: str
    tokens: int
    """Tokens that were generated, the end among them."""
    generated_known: bool | None
    """Whether a text of training is alike; None if these are not known."""
    reference_known: bool | None
    labels: tuple[float, ...]
    """Of the films, in the order of NAMES: 1 present, 0 absent, -1 uncertain, NaN unknown."""


@dataclasses.dataclass(frozen=True)
class Reports:
    """Studies with a generated text and its reference each."""

    studies: tuple[Written, ...]

    @property
    def labels(self) -> Float64[np.ndarray, "n c"]:
        """The films' own labels of NAMES."""
        rows = [one.labels for one in self.studies]
        return np.array(rows, np.float64).reshape(len(rows), len(NAMES))

    def of_split(self, split: str) -> Reports:
        """Return the studies of one split."""
        return Reports(tuple(one for one in self.studies if one.split == split))

    def take(self, rows: Sequence[int]) -> Reports:
        """Return some of the studies."""
        return Reports(tuple(self.studies[i] for i in rows))

    def patients(self) -> Int64[np.ndarray, " n"]:
        """Number the patients; a study without one is a patient of its own."""
        return numbered((s.patient, "" if s.patient else s.id) for s in self.studies)


def is_header(line: str) -> bool:
    """Tell whether a file of predictions that begins with this line is one of reports."""
    try:
        return "generated" in next(csv.reader([line]), [])
    except csv.Error:  # reading the file says what is wrong
        return False


def to_csv(studies: Iterable[Written]) -> str:
    """Write the lines of studies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *_NAMED])
    for one in studies:
        flags = [
            "" if flag is None else f"{flag:d}"
            for flag in (one.generated_known, one.reference_known)
        ]
        labels = ["" if np.isnan(v) else "u" if v < 0 else f"{v:g}" for v in one.labels]
        writer.writerow([*one[: len(COLUMNS) - 2], *flags, *labels])
    return text.getvalue()


def from_csv(text: str, *, name: str) -> Reports:
    """Read predictions; `name` is what messages call them.

    Raises PredictionsError naming line and column of a value that is none, of a study that stands
    there twice, and of what is not CSV.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header, *rows = [(lines.line_num, line) for line in lines] or [(1, [])]
    except csv.Error as error:
        raise PredictionsError(f"{name}, line {lines.line_num}: not CSV ({error})") from None
    if tuple(header[1]) != (*COLUMNS, *_NAMED):
        missing = ", ".join(c for c in (*COLUMNS, *_NAMED) if c not in header[1])
        told = f"without {missing}" if missing else "in another order, or more of them"
        raise PredictionsError(f"{name}: its columns are not those of reports: {told}")
    if not rows:
        raise PredictionsError(f"{name}: a header and no study")
    studies, seen = [], {}
    for number, line in rows:
        where = f"{name}, line {number}"
        one = _study(line, where)
        first = seen.setdefault((one.split, one.source_index, one.place), number)
        if first != number:
            raise PredictionsError(f"{where}: the study of line {first} again")
        studies.append(one)
    return Reports(tuple(studies))


def _study(line: Sequence[str], where: str) -> Written:
    if len(line) != len(COLUMNS) + len(NAMES):
        columns = len(COLUMNS) + len(NAMES)
        raise PredictionsError(f"{where}: {len(line)} values in {columns} columns")
    cells = dict(zip((*COLUMNS, *_NAMED), line, strict=True))
    try:
        source, place, tokens = (count(cells[n]) for n in ("source_index", "index", "tokens"))
    except ValueError:
        told = "source_index, index or tokens is no number"
        raise PredictionsError(f"{where}: {told}") from None
    return Written(
        split=split_of(cells["split"], where),
        source_index=source,
        place=place,
        id=cells["id"],
        patient=cells["patient"],
        study=cells["study"],
        source=cells["source"],
        sections=cells["sections"],
        normalisation=cells["normalisation"],
        marks=cells["marks"],
        generated=cells["generated"],
        reference=cells["reference"],
        tokens=tokens,
        generated_known=_one_of(_FLAGS, cells, "generated_in_training", where),
        reference_known=_one_of(_FLAGS, cells, "reference_in_training", where),
        labels=tuple(_one_of(_LABELS, cells, name, where) for name in _NAMED),
    )


def _one_of(choices: Mapping[str, Any], cells: Mapping[str, str], column: str, where: str) -> Any:
    if cells[column] not in choices:
        told = ", ".join(one or "nothing" for one in choices)
        raise PredictionsError(f"{where}, {column}: none of {told}")
    return choices[cells[column]]
