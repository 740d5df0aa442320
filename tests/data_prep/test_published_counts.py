"""Tables of full size: the published counts of findings, and the cost of 100,000 films."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import util
from pathlib import Path

import numpy as np
import pytest

import data_prep.inputs
from data_prep.tables import Table
from tests.data_prep.trees import CHEXPERT, put, read, table
from xmae_jax.data.findings import FINDINGS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_hundred_thousand_films_are_joined_quickly_and_in_little_memory(tmp_path):
    header = "dicom_id,subject_id,study_id,ViewPosition".split(",")
    rows = [
        (f"{index:08x}-dicom", str(10_000_000 + index // 6), str(50_000_000 + index // 2), "PA")
        for index in range(100_000)
    ]
    for index, (dicom, subject, study, _) in enumerate(rows):
        path = tmp_path / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
        if index % 2 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    table(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", header, *rows)
    said = ["1.0", "", "0.0", "-1.0"]
    labels = (
        [subject, study, *(said[(index + place * index // 7) % 4] for place in range(14))]
        for index, (_, subject, study, _) in enumerate(rows[::2])
    )
    header = ["subject_id", "study_id", *CHEXPERT]
    table(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", header, *labels)
    splits = ((dicom, "", "", "train") for dicom, *_ in rows)
    header = ("dicom_id", "study_id", "subject_id", "split")
    table(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", header, *splits)
    program = """
import sys, time
from pathlib import Path
import data_prep.inputs
from data_prep.adapters import ADAPTERS
rss = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before, started = rss(), time.monotonic()
inputs = ADAPTERS["mimic-cxr-jpg"](Path(sys.argv[1]), masks=None, labels=None, reports=None)
print(len(inputs.rows), time.monotonic() - started, rss() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, seconds, megabytes = map(float, done.stdout.split())
    print(f"100,000 films: {seconds:.1f} s, {megabytes:.0f} MB")
    assert count == 100_000 and seconds < 30 and megabytes < 400  # 1.5 GB for MIMIC's 377,110


@pytest.fixture(scope="session")
def txrv(tmp_path_factory):
    """Return the published tables that torchxrayvision carries, installed or as a wheel."""
    wheel, found = os.environ.get("XMAE_TXRV_WHEEL"), util.find_spec("torchxrayvision")
    if wheel:
        folder = tmp_path_factory.mktemp("txrv")
        with zipfile.ZipFile(wheel) as file:
            names = [name for name in file.namelist() if "/data/" in name]
            file.extractall(folder, names)
        return folder / "torchxrayvision/data"
    if found is None or found.origin is None:
        pytest.skip("no published tables: no torchxrayvision, and XMAE_TXRV_WHEEL not set")
    return Path(found.origin).parent / "data"


@pytest.fixture
def pretend(monkeypatch):
    """Make films exist in name only."""

    def films(*names):
        monkeypatch.setattr(data_prep.inputs, "walk", lambda *_, **__: (tuple(sorted(names)), {}))

    return films


def count(rows, value):
    """Count a value of each finding that any row knows."""
    labels = np.array([row.findings for row in rows])
    return {
        name: int((labels[:, index] == value).sum())
        for index, name in enumerate(FINDINGS)
        if not np.isnan(labels[:, index]).all()
    }


@pytest.mark.slow
def test_published_counts_of_chestxray14(txrv, tmp_path, pretend):
    source = txrv / "Data_Entry_2017_v2020.csv.gz"
    names = [line.cells["Image Index"] for line in Table(source)]
    pretend(*(f"images/{name}" for name in names))
    for name, of in (("train_val_list.txt", names[:86_000]), ("test_list.txt", names[90_000:])):
        patients = {of[0][:8], of[-1][:8]}  # not cut within a patient: the lists are not in it
        put(tmp_path / name, "\n".join(image for image in of if image[:8] not in patients))
    found = read("chestx-ray14", tmp_path, labels=source)
    assert len(found.rows) == 112_120 and found.orphans == 0
    assert len({row.patient for row in found.rows.values()}) == 30_805
    assert count(found.rows.values(), 1) == {
        "No Finding": 60_361,
        "Atelectasis": 11_559,
        "Cardiomegaly": 2_776,
        "Consolidation": 4_667,
        "Edema": 2_303,
        "Pleural Effusion": 13_317,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Hernia": 227,
        "Infiltration": 19_894,
        "Mass": 5_782,
        "Nodule": 6_331,
        "Pleural Thickening": 3_385,
        "Pneumonia": 1_431,
        "Pneumothorax": 5_302,
    }


@pytest.mark.slow
def test_published_counts_of_chexpert(txrv, tmp_path, pretend):
    """The paper counts studies (Irvin et al. 2019, table 1): present and uncertain."""
    source = txrv / "chexpert_train.csv.gz"
    table_ = Table(source)
    pretend(*(line.cells["Path"] for line in table_))
    header = table_.columns
    valid = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
    table(tmp_path / "valid.csv", header, [valid, "", "", "Frontal", "PA", *["0.0"] * 14])
    found = read("chexpert", tmp_path, labels=source)
    assert len(found.rows) == 223_414 and found.orphans == 1
    assert len({row.patient for row in found.rows.values()}) == 64_540
    studies = {row.study: row for row in found.rows.values()}.values()
    assert len(studies) == 187_641
    present, uncertain = count(studies, 1), count(studies, -1)
    assert {name: (present[name], uncertain[name]) for name in present} == {
        "No Finding": (16_627, 0),
        "Enlarged Cardiomediastinum": (9_020, 10_148),
        "Cardiomegaly": (23_002, 6_597),
        "Lung Lesion": (6_856, 1_071),
        "Lung Opacity": (92_669, 4_341),
        "Edema": (48_905, 11_571),
        "Consolidation": (12_730, 23_976),
        "Pneumonia": (4_576, 15_658),
        "Atelectasis": (29_333, 29_377),
        "Pneumothorax": (17_313, 2_663),
        "Pleural Effusion": (75_696, 9_419),
        "Pleural Other": (2_441, 1_771),
        "Fracture": (7_270, 484),
        "Support Devices": (105_831, 898),
    }


@pytest.mark.slow
def test_published_counts_of_rsna_pneumonia(txrv, tmp_path, pretend):
    """26,684 films, 6,012 with one of 9,555 boxes."""
    with zipfile.ZipFile(txrv / "kaggle_stage_2_train_labels.csv.zip") as file:
        file.extractall(tmp_path)
    target = {
        line.id("patientId"): line.value("Target")
        for line in Table(tmp_path / "stage_2_train_labels.csv")
    }
    classes = ((name, "Lung Opacity" if value else "Normal") for name, value in target.items())
    table(tmp_path / "stage_2_detailed_class_info.csv", ("patientId", "class"), *classes)
    pretend(*(f"stage_2_train_images/{name}.dcm" for name in target))
    found = read("rsna-pneumonia", tmp_path)
    assert len(found.rows) == 26_684 and count(found.rows.values(), 1)["Lung Opacity"] == 6_012


@pytest.mark.slow
def test_published_counts_of_open_i(txrv, tmp_path, pretend):
    """3,955 reports of 7,470 films; 1,391 reports are indexed as normal."""
    with tarfile.open(txrv / "NLMCXR_reports.tgz") as file:
        file.extractall(tmp_path, filter="data")
    text = "".join(path.read_text() for path in (tmp_path / "ecgen-radiology").glob("*.xml"))
    names = re.findall(r'<parentImage id="(\w[^"]*)"', text)
    pretend(*(f"NLMCXR_png/{name}.png" for name in names))
    found = read("open-i", tmp_path)
    assert (len(found.reports), len(found.rows), found.orphans) == (3_955, 7_470, 0)
    assert len({row.patient for row in found.rows.values()}) == 3_955 - 104  # some have no film
    assert text.count("<major>normal</major>") == 1_391
    studies = {row.study: row for row in found.rows.values()}.values()
    assert count(studies, 1)["No Finding"] > 1_300
    assert sum(bool(report["findings"]) for report in found.reports.values()) > 3_000
