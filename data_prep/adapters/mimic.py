"""MIMIC-CXR-JPG with its reports, and CXR-LT 2024, whose labels are of the same films.

Johnson et al. 2019, https://physionet.org/content/mimic-cxr-jpg/; Lin et al. 2025,
https://physionet.org/content/cxr-lt-iccv-workshop-cvamd/2.0.0/.
"""

import re
from dataclasses import replace
from pathlib import Path

from data_prep.adapters.shared import need, text_of, there, view_of
from data_prep.inputs import SPLIT_NAMES, Inputs, Join, Row, split_name
from data_prep.tables import UNKNOWN, Labels, Line, Table, bounded
from xmae_jax.data.records import DataError, Report
from xmae_jax.data.text import sections

_WHERE = "https://physionet.org/content/mimic-cxr-jpg/"
_LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
# Of a film's path: p10/p10000032/s50414267/<dicom_id>.jpg.
_PATH = re.compile(r"(?:^|/)p(\d+)/s(\d+)/[^/]+$")


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read files/p10/p10000032/s50414267/<dicom_id>.jpg, metadata, official split and labels.

    labels: another table of labels by `study_id`, such as the radiologists' of 2.1.0 for the test
    set. Blank is "not mentioned" and stays unknown.
    """
    folder = folder.resolve()
    metadata, split, table = (
        path or need(folder, f"{name}.gz", name, where=_WHERE)
        for name, path in (
            ("mimic-cxr-2.0.0-metadata.csv", None),
            ("mimic-cxr-2.0.0-split.csv", None),
            ("mimic-cxr-2.0.0-chexpert.csv", labels),
        )
    )
    findings = _by_study(table)
    lines = Table(split, required=("dicom_id", "split"))
    splits = {line.id("dicom_id"): split_name(line, "split") for line in lines}
    join = _films(folder)
    for line in Table(metadata, required=("dicom_id", "subject_id", "study_id", "ViewPosition")):
        labels_of = findings.get(line.id("study_id"), UNKNOWN)
        row = _row(
            line,
            source="MIMIC-CXR-JPG",
            findings=labels_of,
            split=splits.get(line.id("dicom_id"), ""),
        )
        join.add(join.film(line.id("dicom_id")), row, line)
    join.add_rest(lambda film: _row_of(film, source="MIMIC-CXR-JPG"))
    tables = (metadata, split, table)
    return join.inputs(tables=tables, masks=masks, reports=_reports(folder, reports, join))


def scan_cxr_lt(
    folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None
) -> Inputs:
    """Read the films of MIMIC-CXR-JPG with CXR-LT's 45 classes and its own split.

    labels: the table of a task (train_labeled.csv, test_labeled_task2.csv, ...) in place of
    labels.csv, which holds all; the name of such a table says the split. A film outside of it is in
    the split of its patient: by that table, else by labels.csv if it is there, else train.
    """
    folder = folder.resolve()
    where = "https://physionet.org/content/cxr-lt-iccv-workshop-cvamd/2.0.0/"
    whole = there(folder, "cxr-lt-2024/labels.csv") or there(folder, "labels.csv")
    table = Table(
        labels or whole or need(folder, "labels.csv", where=where),
        required=("dicom_id", "subject_id", "study_id"),
    )
    named = SPLIT_NAMES.get(table.path.name.split("_")[0])
    if "split" not in table.columns and named is None:
        raise DataError(f"{table.path}, line 1: no column 'split', and no split in the file's name")
    findings = table.findings()
    join = _films(folder)
    for line in table:
        split = split_name(line, "split") if named is None else named
        row = _row(line, source="CXR-LT 2024", findings=findings(line), split=split)
        join.add(join.film(line.id("dicom_id")), row, line)
    rest = _patient_splits(whole) if labels and whole else {}

    def row_of(film: str) -> Row | None:
        row = _row_of(film, source="CXR-LT 2024")
        split = row and (join.splits.get(row.patient) or rest.get(row.patient) or "train")
        return row and replace(row, split=split)

    join.add_rest(row_of)
    tables = (table.path, whole) if rest and whole else (table.path,)
    return join.inputs(tables=tables, masks=masks, reports=_reports(folder, reports, join))


def _films(folder: Path) -> Join:
    return Join(folder, suffixes=(".jpg", ".jpeg", ".dcm"))


def _row(line: Line, *, source: str, findings: Labels, split: str) -> Row:
    return Row(
        patient=f"mimic:{line.id('subject_id')}",
        study=f"mimic:{line.id('study_id')}",
        view=view_of(line.word("ViewPosition")),
        source=source,
        findings=findings,
        split=split,
        licence=_LICENCE,
    )


def _row_of(film: str, *, source: str) -> Row | None:
    """Read the patient and the study of a film that no table names from its path."""
    match = _PATH.search(film)
    if match is None:
        return None
    patient, study = (f"mimic:{number}" for number in match.groups())
    return Row(patient=patient, study=study, source=source, licence=_LICENCE)


def _patient_splits(path: Path) -> dict[str, str]:
    lines = Table(path, required=("subject_id", "split"))
    return {f"mimic:{line.id('subject_id')}": split_name(line, "split") for line in lines}


def _by_study(path: Path) -> dict[str, Labels]:
    table = Table(path, required=("study_id",))
    read = table.findings()
    found: dict[str, Labels] = {}
    for line in table:
        labels = read(line)
        if found.setdefault(line.id("study_id"), labels) != labels:
            raise line.error("study_id", "a second row of one study says something else")
    return found


def _reports(folder: Path, given: Path | None, join: Join) -> dict[str, Report]:
    """Read the reports of the films' studies: files/p10/p10000032/s50414267.txt."""
    places = (given, there(folder, "mimic-cxr-reports"), folder)
    base = next(path for path in places if path is not None)
    base = base if base.name == "files" else base / "files"
    studies = {(row.patient, row.study) for row in join.rows.values()}
    found = {}
    for patient, study in sorted(studies):
        subject, number = patient.partition(":")[2], study.partition(":")[2]
        text = text_of(base / f"p{subject[:2]}" / f"p{subject}" / f"s{number}.txt")
        if text is not None:
            found[study] = bounded(sections(text))
    if given is not None and studies and not found:
        raise DataError(f"{given}: no report of any study, as files/p10/p10000032/s50414267.txt")
    return found
