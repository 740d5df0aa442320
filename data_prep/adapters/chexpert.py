"""CheXpert (Irvin et al. 2019, https://stanfordmlgroup.github.io/competitions/chexpert/).

Any of its forms: CheXpert-v1.0, CheXpert-v1.0-small, or the four "batch" folders of the download.
"""

import re
from dataclasses import replace
from pathlib import Path

from data_prep.adapters.shared import need, refuse, there, view_of
from data_prep.inputs import SPLIT_NAMES, Inputs, Join, Row
from data_prep.tables import Line, Table, without_suffix

_WHERE = "https://stanfordaimi.azurewebsites.net (CheXpert)"
_PATH = re.compile(r"(?:(.*)/)?(patient\d+)/(study\d+)/(\w+)\.(?i:jpg)")
_SPLIT = re.compile(f"(?<![a-z])({'|'.join(filter(None, SPLIT_NAMES))})(?![a-z])")


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read train.csv and valid.csv, and test_labels.csv if it is there; a film by its path.

    labels: in place of train.csv, such as train_cheXbert.csv. A film that no table names, such as
    those of test/ without test_labels.csv, is of the patient and the split that its path names.
    Blank is "not mentioned" and stays unknown. There are no reports.
    """
    refuse("chexpert", reports=reports)
    folder = folder.resolve()
    tables = [
        labels or need(folder, "train.csv", where=_WHERE),
        need(folder, "valid.csv", where=_WHERE),
    ]
    test = there(folder, "test_labels.csv") or there(folder, "CheXpert/test_labels.csv")
    tables += [] if test is None else [test]
    join = Join(folder, suffixes=(".jpg",), depth=3)
    for path in tables:
        table = Table(path, required=("Path",))
        findings = table.findings()
        for line in table:
            path = line.id("Path")
            row = _row(path)
            if row is None or not row.split:
                raise line.error("Path", "not .../train/patient00001/study1/view1_frontal.jpg")
            row = replace(
                row,
                view=_view(line, row.view),
                findings=findings(line),
                sex=line.sex("Sex"),
                age=line.age("Age"),
            )
            join.add(join.film("/".join(without_suffix(path).split("/")[-3:])), row, line)
    join.add_rest(_row)
    return join.inputs(tables=tables, masks=masks)


def _row(path: str) -> Row | None:
    """Read what a film's path says: .../train/patient00001/study1/view1_frontal.jpg.

    The nearest folder that names a split says it, such as `CheXpert-v1.0 batch 2 (train 1)`.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    folders, patient, study, view = match.groups()
    named = (_SPLIT.search(folder) for folder in reversed((folders or "").lower().split("/")))
    split = next((SPLIT_NAMES[found[0]] for found in named if found), "")
    return Row(
        patient=f"chexpert:{patient}",
        study=f"chexpert:{patient}/{study}",
        view=view_of(view.partition("_")[2]),
        source="CheXpert",
        split=split,
        licence="Stanford University Dataset Research Use Agreement",
    )


def _view(line: Line, named: str) -> str:
    """Read the columns of the view, or what the film's name says where the table has none."""
    side, projection = line.word("Frontal/Lateral"), line.word("AP/PA")
    return projection if side.lower() == "frontal" and projection else view_of(side) or named
