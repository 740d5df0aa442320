"""VinDr-CXR (Nguyen et al. 2022, https://physionet.org/content/vindr-cxr/1.0.0/)."""

import math
from collections.abc import Iterable
from pathlib import Path

from data_prep.adapters.shared import need, refuse, train_or_val
from data_prep.inputs import Inputs, Join, Row
from data_prep.tables import UNKNOWN, Labels, Line, Table, without_suffix

_WHERE = "https://physionet.org/content/vindr-cxr/1.0.0/"


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read {train,test}/<image_id>.dicom and annotations/image_labels_{train,test}.csv.

    Three radiologists read each training film: a finding is what most of them say. Five agreed on
    each test film. labels: in place of image_labels_train.csv. Patients are not known: a film is a
    patient of its own, and val is a tenth of the official training films by hash. No reports.
    """
    refuse("vindr-cxr", reports=reports)
    folder = folder.resolve()
    train = labels or _table(folder, "image_labels_train.csv")
    tables = {train: "train", _table(folder, "image_labels_test.csv"): "test"}
    join = Join(folder, suffixes=(".dicom", ".dcm"))
    for path, split in tables.items():
        table = Table(path, required=("image_id",))
        findings = table.findings()
        read: dict[str, tuple[Line, list[Labels]]] = {}
        for line in table:
            read.setdefault(line.id("image_id"), (line, []))[1].append(findings(line))
        for image, (line, votes) in read.items():
            row = _row(image, split, tuple(map(_majority, zip(*votes, strict=True))))
            join.add(join.film(image), row, line)
    join.add_rest(_row_of)
    return join.inputs(tables=tables, masks=masks)


def _row(image: str, split: str, findings: Labels) -> Row:
    patient = f"vindr:{image}"
    return Row(
        patient=patient,
        view="PA",
        source="VinDr-CXR",
        findings=findings,
        split=train_or_val(patient) if split == "train" else split,
        licence="PhysioNet Credentialed Health Data License 1.5.0",
    )


def _row_of(film: str) -> Row | None:
    """Leave a film that no table names in the official split whose folder it is in."""
    *folders, name = film.split("/")
    split = folders[-1] if folders else ""
    return _row(without_suffix(name), split, UNKNOWN) if split in ("train", "test") else None


def _table(folder: Path, name: str) -> Path:
    return need(folder, f"annotations/{name}", name, where=_WHERE)


def _majority(votes: Iterable[float]) -> float:
    """Return 1 if more radiologists say present than not, NaN if none says anything."""
    known = [vote for vote in votes if not math.isnan(vote)]
    return float(2 * known.count(1.0) > len(known)) if known else math.nan
