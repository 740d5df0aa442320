"""CheXpert (Irvin et al. 2019, https://stanfordmlgroup.github.io/competitions/chexpert/).

Any of its forms: CheXpert-v1.0, CheXpert-v1.0-small, or the four "batch" folders of the download.
"""

import re
from pathlib import Path

from data_prep.adapters.shared import need, refuse, there, view_of
from data_prep.inputs import SPLIT_NAMES, Inputs, Join, Row
from data_prep.tables import Line, Table

_WHERE = "https://stanfordaimi.azurewebsites.net (CheXpert)"
_PATH = re.compile(r"(\w+)/(patient\d+)/(study\d+)/(\w+)\.jpg$")


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read train.csv and valid.csv, and test_labels.csv if it is there; a film by its path.

    labels: in place of train.csv, such as train_cheXbert.csv. Without test_labels.csv there is no
    test split. Blank is "not mentioned" and stays unknown. There are no reports.
    """
    refuse("chexpert", reports=reports)
    folder = folder.resolve()
    tables = [
        labels or need(folder, "train.csv", where=_WHERE),
        need(folder, "valid.csv", where=_WHERE),
    ]
    test = there(folder, "test_labels.csv")
    tables += [] if test is None else [test]
    join = Join(folder, suffixes=(".jpg",), depth=3)
    for path in tables:
        table = Table(path, required=("Path",))
        findings = table.findings()
        for line in table:
            match = _PATH.search(line.id("Path"))
            split = SPLIT_NAMES.get(match[1]) if match else None
            if not match or not split:
                raise line.error("Path", "not .../train/patient00001/study1/view1_frontal.jpg")
            patient, study, view = match.groups()[1:]
            row = Row(
                patient=f"chexpert:{patient}",
                study=f"chexpert:{patient}/{study}",
                view=_view(line, view),
                source="CheXpert",
                findings=findings(line),
                split=split,
                licence="Stanford University Dataset Research Use Agreement",
            )
            join.add(join.film(f"{patient}/{study}/{view}"), row, line)
    return join.inputs(tables=tables, masks=masks)


def _view(line: Line, name: str) -> str:
    """Read the columns of the view, or the film's name where the table of the test set has none."""
    side = line.word("Frontal/Lateral") or name.partition("_")[2]
    projection = line.word("AP/PA")
    return projection if side.lower() == "frontal" and projection else view_of(side)
