"""NIH ChestX-ray14 (Wang et al. 2017, https://nihcc.app.box.com/v/ChestXray-NIHCC)."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from data_prep.adapters.shared import labels_of, need, refuse, train_or_val
from data_prep.inputs import Inputs, Join, Row
from data_prep.tables import Labels, Line, Table, without_suffix
from xmae_jax.data.records import DataError

_WHERE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
_NAMES = (
    "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Hernia Infiltration"
    " Mass Nodule Pleural_Thickening Pneumonia Pneumothorax"
).split()
_NONE = "No Finding"


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read images*/**/00000001_000.png, Data_Entry_2017[_v2020].csv and the two official lists.

    labels: in place of Data_Entry_2017. The test split is the official one; val is a tenth of the
    official training patients, by hash. There are no reports.
    """
    refuse("chestx-ray14", reports=reports)
    folder = folder.resolve()
    names = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    table = labels or need(folder, *names, where=_WHERE)
    train, test = (
        need(folder, name, where=_WHERE) for name in ("train_val_list.txt", "test_list.txt")
    )
    official = _lists(train, test)
    join = Join(folder, suffixes=(".png",))
    columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    for line in Table(table, required=columns):
        image, patient = line.id("Image Index"), nih_patient(line.id("Image Index"))
        if not patient or patient != f"nih:{line.id('Patient ID').lstrip('0')}":
            raise line.error("Patient ID", "not the number at the beginning of the image's name")
        row = _row(patient, official.get(image, ""))
        row = replace(
            row,
            view=line.word("View Position"),
            findings=_labels(line),
            sex=line.sex("Patient Gender"),
            age=line.age("Patient Age"),
        )
        join.add(join.film(without_suffix(image)), row, line)

    def row_of(film: str) -> Row | None:
        image = film.rpartition("/")[2]
        patient = nih_patient(image)
        return _row(patient, official.get(image, "")) if patient else None

    join.add_rest(row_of)
    return join.inputs(tables=(table, train, test), masks=masks)


def _row(patient: str, split: str) -> Row:
    return Row(
        patient=patient,
        source="ChestX-ray14",
        split=train_or_val(patient) if split == "train" else split,
        licence="NIH-no-restrictions",
    )


def nih_patient(image: str) -> str:
    """Name the patient of an image called 00000001_000.png; blank if it is not called so."""
    number = image.partition("_")[0]
    return f"nih:{number.lstrip('0')}" if number.isascii() and number.isdigit() else ""


def _labels(line: Line) -> Labels:
    labels = _vector(line.section("Finding Labels"))
    if labels is None:
        raise line.error(
            "Finding Labels", "neither 'No Finding' nor some of the 14 findings, with | between"
        )
    return labels


@cache  # 836 combinations in 112,120 rows
def _vector(text: str) -> Labels | None:
    """Read `Mass|Nodule` or `No Finding`: all 14 are annotated, so what is not named is absent."""
    named = set(text.split("|"))
    if not named <= {_NONE, *_NAMES} or (_NONE in named and len(named) > 1):
        return None
    return labels_of({name: float(name in named) for name in (_NONE, *_NAMES)})


def _lists(train: Path, test: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, split in ((train, "train"), (test, "test")):
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
        for number, name in enumerate(text.splitlines(), start=1):
            if name.strip() and found.setdefault(name.strip(), split) != split:
                raise DataError(f"{path}, line {number}: this image is in {train.name} too")
    return found
