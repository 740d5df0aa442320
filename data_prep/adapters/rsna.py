"""RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019, https://doi.org/10.1148/ryai.2019180041).

Its films are ChestX-ray14's under new names: with the mapping that RSNA publishes beside them, a
patient here is the patient there; without it each film passes for a patient of its own.
"""

import json
from pathlib import Path

from data_prep.adapters.chestxray14 import nih_patient
from data_prep.adapters.shared import labels_of, need, refuse, there
from data_prep.inputs import Inputs, Join, Row
from data_prep.tables import UNKNOWN, Labels, Table, without_suffix
from xmae_jax.data.records import DataError

_WHERE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
# Of stage_2_detailed_class_info.csv -> no finding, lung opacity.
_CLASSES = {
    "Normal": (1.0, 0.0),
    "Lung Opacity": (0.0, 1.0),
    "No Lung Opacity / Not Normal": (0.0, 0.0),
}


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read stage_2_train_images/<patientId>.dcm, the table of boxes and that of classes.

    A film has a row for each box. `Target` is an opacity that suggests pneumonia: both findings
    take it. labels: in place of stage_2_train_labels.csv. There is no official split of the films
    with labels, and there are no reports.
    """
    refuse("rsna-pneumonia", reports=reports)
    folder = folder.resolve()
    boxes = labels or need(folder, "stage_2_train_labels.csv", where=_WHERE)
    classes = need(folder, "stage_2_detailed_class_info.csv", where=_WHERE)
    mapping = there(folder, _MAPPING)
    patients = _patients(mapping) if mapping else {}
    class_of: dict[str, str] = {}
    for line in Table(classes, required=("patientId", "class")):
        name = line.word("class")
        if name not in _CLASSES:
            raise line.error("class", f"none of {', '.join(_CLASSES)}")
        if class_of.setdefault(line.id("patientId"), name) != name:
            raise line.error("class", "a second row of one film says something else")
    join = Join(folder, suffixes=(".dcm",))
    for line in Table(boxes, required=("patientId", "Target")):
        film = line.id("patientId")
        target = line.value("Target")
        values = {"Lung Opacity": target, "Pneumonia": target}
        if film in class_of:
            values["No Finding"], expected = _CLASSES[class_of[film]]
            if expected != target:
                raise line.error("Target", f"not what {classes.name} says")
        join.add(join.film(film), _row(patients.get(film, f"rsna:{film}"), labels_of(values)), line)

    def row_of(film: str) -> Row | None:  # those of stage_2_test_images have no labels
        patient = patients.get(without_suffix(film.rpartition("/")[2]))
        return _row(patient, UNKNOWN) if patient else None

    join.add_rest(row_of)
    notes = () if mapping else (f"no {_MAPPING}: each film passes for a patient of its own",)
    tables = [path for path in (boxes, classes, mapping) if path]
    return join.inputs(tables=tables, masks=masks, notes=notes)


def _row(patient: str, findings: Labels) -> Row:
    return Row(
        patient=patient,
        source="RSNA Pneumonia",
        findings=findings,
        licence="RSNA Pneumonia Detection Challenge terms of use",
    )


def _patients(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_bytes())
        patients = {entry["subset_img_id"]: nih_patient(entry["img_id"]) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not RSNA's mapping ({type(error).__name__})") from None
    if not all(patients.values()):
        raise DataError(f"{path}: an img_id is not called 00000001_000.png")
    return patients
