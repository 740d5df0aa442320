"""Each published layout in small: documented file names and columns, joined as they should be."""

import csv
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.adapters import ADAPTERS
from data_prep.given import read_given
from data_prep.inputs import mask_digest
from data_prep.splits import split_of
from tests.data_prep import trees
from tests.data_prep.trees import (
    CHEXPERT,
    CXR_LT,
    MIMIC,
    VINDR,
    chestxray14,
    chexpert,
    known,
    put,
    read,
    table,
)
from xmae_jax.data.film import FilmError
from xmae_jax.data.findings import find
from xmae_jax.data.records import NO_REPORT, DataError


@pytest.fixture
def mimic(tmp_path):
    return trees.mimic(tmp_path / "mimic")


def test_mimic_cxr_jpg(mimic):
    inputs = read("mimic-cxr-jpg", mimic)
    rows = {film.rpartition("/")[2]: row for film, row in inputs.rows.items()}
    assert len(inputs.films) == 4 and inputs.orphans == 1 and len(inputs.tables) == 3
    first, lateral = rows["aaa-1.jpg"], rows["aaa-2.jpg"]
    assert (first.patient, first.study, first.view) == ("mimic:10000032", "mimic:50414267", "PA")
    assert lateral.view == "L" and lateral.study == first.study
    assert [rows[f"{name}-1.jpg"].split for name in ("aaa", "bbb", "ccc")] == [
        "train",
        "val",
        "test",
    ]
    assert known(first) == {"Pleural Effusion": 1, "Edema": -1, "Fracture": 0}
    assert known(rows["bbb-1.jpg"]) == {}
    assert first.licence.startswith("PhysioNet Credentialed")
    assert inputs.reports["mimic:50414267"] == {
        "findings": "Small effusion. No change.",
        "impression": "Effusion; see above.",
        "indication": "___M with cough: worse",
        "comparison": "",
    }
    assert inputs.reports["mimic:51111111"] == NO_REPORT


def test_mimic_takes_the_radiologists_labels_in_place_of_its_own(mimic):
    path = mimic / "mimic-cxr-2.1.0-test-set-labeled.csv"
    table(path, ("study_id", "Airspace Opacity", "No Finding"), ("52222222", "1", "0"))
    rows = read("mimic-cxr-jpg", mimic, labels=path).rows
    assert [known(row) for row in rows.values()][-1] == {"Lung Opacity": 1, "No Finding": 0}


def test_a_table_that_is_not_there_is_named_with_its_source(mimic):
    (mimic / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(DataError, match=r"no mimic-cxr-2.0.0-split.csv.gz or .*physionet.org"):
        read("mimic-cxr-jpg", mimic)


def test_official_splits_that_overlap_are_refused(mimic):
    header = ("dicom_id", "study_id", "subject_id", "split")
    rows = ((dicom, "", "", "test" if dicom == "aaa-2" else "train") for dicom in MIMIC)
    table(mimic / "mimic-cxr-2.0.0-split.csv.gz", header, *rows)
    with pytest.raises(DataError, match=r"metadata.csv.gz, line 3, column split: a patient with"):
        read("mimic-cxr-jpg", mimic)


def test_two_films_of_one_name_are_refused(mimic):
    put(mimic / "files/copy/aaa-1.jpg")
    with pytest.raises(DataError, match="line 2: two films have the name of this row"):
        read("mimic-cxr-jpg", mimic)


def test_cxr_lt_2024(mimic):
    header = "dicom_id subject_id study_id ViewPosition ViewCodeSequence_CodeMeaning fpath split"
    header = [*header.split(), *CXR_LT]
    splits = {"train": "train", "validate": "development", "test": "test"}
    rows = [
        [dicom, subject, study, view, "", "files/...", splits[split], *["0"] * 44, "1"]
        for dicom, (subject, study, view, split) in MIMIC.items()
    ]
    table(mimic / "cxr-lt-2024/labels.csv", header, *rows)
    inputs = read("cxr-lt-2024", mimic)
    row = inputs.rows["files/p11/p11000011/s51111111/bbb-1.jpg"]
    assert len(CXR_LT) == len(known(row)) == 45 and inputs.orphans == 1
    assert known(row)["Tuberculosis"] == 1 and known(row)["No Finding"] == 0
    assert row.split == "val" and row.patient == "mimic:11000011"
    assert len(inputs.reports) == 2
    # the table of a task: its name says the split
    task = mimic / "cxr-lt-2024/test_labeled_task2.csv"
    header = ["dicom_id", "subject_id", "study_id", "fpath", *CXR_LT[:26]]
    film = "files/p12/p12000012/s52222222/ccc-1.jpg"
    table(task, header, ["ccc-1", "12000012", "52222222", "", *["1"] * 26])
    row = read("cxr-lt-2024", mimic, labels=task).rows[film]
    assert row.split == "test" and len(known(row)) == 26
    task = task.rename(mimic / "cxr-lt-2024/development_labeled_task1.csv")
    row = read("cxr-lt-2024", mimic, labels=task).rows[film]
    assert row.split == "val"
    task.rename(mimic / "mine.csv")
    with pytest.raises(DataError, match="mine.csv, line 1: no column 'split'"):
        read("cxr-lt-2024", mimic, labels=mimic / "mine.csv")


@pytest.mark.parametrize("batches", [False, True])
def test_chexpert(tmp_path, batches):
    inputs = read("chexpert", chexpert(tmp_path, batches=batches))
    rows = {row.patient + row.view: row for row in inputs.rows.values()}
    assert list(sorted(rows)) == [
        "chexpert:patient00001AP",
        "chexpert:patient00001L",
        "chexpert:patient00002PA",
        "chexpert:patient64541PA",
        "chexpert:patient64741Frontal",
    ]
    assert inputs.orphans == 1 and inputs.films == tuple(sorted(inputs.rows))
    assert known(rows["chexpert:patient00001AP"]) == {"No Finding": 1}
    assert known(rows["chexpert:patient00002PA"]) == {"Support Devices": -1}
    assert len(known(rows["chexpert:patient64541PA"])) == 14
    assert [(row.sex, row.age) for row in rows.values()].count(("F", 68.0)) == 1
    assert [rows[name].split for name in sorted(rows)] == ["train"] * 3 + ["val", "test"]


def test_chestxray14(tmp_path):
    names = chestxray14(tmp_path)
    inputs = read("chestx-ray14", tmp_path)
    rows = {film.rpartition("/")[2]: row for film, row in inputs.rows.items()}
    assert set(rows) == set(names) and inputs.orphans == 0
    assert len(known(rows[names[1]])) == 15
    assert {row.sex for row in rows.values()} == {"M"} and rows[names[1]].age == 57
    assert inputs.notes == ("1 films have an age that nobody has: taken for unknown",)
    positive = {name for name, value in known(rows[names[1]]).items() if value == 1}
    assert positive == {"Cardiomegaly", "Pleural Effusion"}
    assert known(rows[names[2]])["Pleural Thickening"] == 1 == known(rows[names[0]])["No Finding"]
    splits = {row.patient: row.split for row in rows.values()}
    assert {patient for patient, split in splits.items() if split == "test"} == {
        f"nih:{number}" for number in range(51, 61)
    }
    trained = [f"nih:{number}" for number in range(1, 51)]
    assert [splits[name] for name in trained] == [
        "val" if split_of(name) == "val" else "train" for name in trained
    ]
    assert "val" in splits.values()


@pytest.mark.parametrize(
    ("file", "old", "new", "part"),
    [
        (
            "test_list.txt",
            "00000051_000",
            "00000001_000",
            "line 1: this image is in train_val_list",
        ),
        (
            "test_list.txt",
            "00000051_001.png",
            "",
            "column split: a patient with films in two splits",
        ),
        (
            "Data_Entry_2017_v2020.csv",
            "No Finding",
            "No Finding|Mass",
            "line 2, column Finding Labels",
        ),
        ("Data_Entry_2017_v2020.csv", "Effusion", "Efusion", "line 3, column Finding Labels"),
        (
            "Data_Entry_2017_v2020.csv",
            "No Finding,0,1,",
            "No Finding,0,2,",
            "line 2, column Patient ID",
        ),
    ],
)
def test_chestxray14_that_contradicts_itself_is_refused(tmp_path, file, old, new, part):
    names = chestxray14(tmp_path)
    text = (tmp_path / file).read_bytes().decode()
    assert old in text
    put(tmp_path / file, text.replace(old, new, 1))
    if not new:  # this film goes to the training list
        put(tmp_path / "train_val_list.txt", "\n".join([*names[:-20], old]))
    with pytest.raises(DataError, match=part):
        read("chestx-ray14", tmp_path)


def test_vindr_cxr(tmp_path):
    for split, name in (("train", "a1"), ("train", "b2"), ("test", "c3")):
        put(tmp_path / f"{split}/{name}.dicom")
    votes = {"a1": ("1", "1", "0"), "b2": ("0", "1", "0")}
    header = ["image_id", "rad_id", *VINDR, "Other diseases", "No finding"]
    rows = [
        [image, f"R{index}", *[vote] * 26, "", "0"]
        for image, of in votes.items()
        for index, vote in enumerate(of)
    ]
    table(tmp_path / "annotations/image_labels_train.csv", header, *rows)
    header = ["image_id", *VINDR, "Other disease", "No finding"]
    table(tmp_path / "annotations/image_labels_test.csv", header, ["c3", *["0"] * 27, "1"])
    rows = read("vindr-cxr", tmp_path).rows
    a, b, c = (rows[name] for name in ("train/a1.dicom", "train/b2.dicom", "test/c3.dicom"))
    assert len(known(a)) == 27 and len(known(c)) == 28  # "Other diseases" is blank
    assert {value for name, value in known(a).items() if name != "No Finding"} == {1.0}
    assert set(known(b).values()) == {0.0}
    assert known(a)["Lung Lesion"] == 1 and known(c)["No Finding"] == 1
    assert known(a)["Interstitial Lung Disease"] == 1 and known(c)["Other Disease"] == 0
    assert a.patient == "vindr:a1" and c.split == "test" and {a.split, b.split} <= {"train", "val"}


def test_rsna_pneumonia(tmp_path):
    folder = tmp_path / "rsna"
    for name in ("p1", "p2", "p3"):
        put(folder / f"stage_2_train_images/{name}.dcm")
    put(folder / "stage_2_test_images/t1.dcm")
    header = ("patientId", "x", "y", "width", "height", "Target")
    boxes = [("p1", "", "", "", "", "0"), ("p2", "1", "2", "3", "4", "1"), ("p2", *"56781")]
    table(folder / "stage_2_train_labels.csv", header, *boxes, ("p3", "", "", "", "", "0"))
    classes = [("p1", "Normal"), ("p2", "Lung Opacity"), ("p2", "Lung Opacity")]
    classes += [("p3", "No Lung Opacity / Not Normal")]
    table(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), *classes)
    inputs = read("rsna-pneumonia", folder)
    one, two, three = (inputs.rows[f"stage_2_train_images/p{number}.dcm"] for number in (1, 2, 3))
    assert known(one) == {"No Finding": 1, "Lung Opacity": 0, "Pneumonia": 0}
    assert known(two) == {"No Finding": 0, "Lung Opacity": 1, "Pneumonia": 1}
    assert known(three) == {"No Finding": 0, "Lung Opacity": 0, "Pneumonia": 0}
    assert (
        len(inputs.films) == 4
        and one.patient == "rsna:p1"
        and "patient of its own" in inputs.notes[0]
    )
    # with RSNA's mapping a patient is ChestX-ray14's
    mapping = [{"subset_img_id": f"p{n}", "img_id": f"0000000{n // 2}_000.png"} for n in (1, 2, 3)]
    put(folder / "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping[1:]))
    inputs = read("rsna-pneumonia", folder)
    patients = [inputs.rows[f"stage_2_train_images/p{number}.dcm"].patient for number in (1, 2, 3)]
    assert patients == ["rsna:p1", "nih:1", "nih:1"] and not inputs.notes
    table(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), ("p2", "Normal"))
    with pytest.raises(DataError, match="line 3, column Target: not what"):
        read("rsna-pneumonia", folder)


def picture(path, box):
    """Write a mask of 0 and 255 with a box (y0, x0, y1, x1)."""
    mask = np.zeros((40, 30), np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def test_montgomery(tmp_path):
    base = tmp_path / "MontgomerySet"
    for name in ("MCUCXR_0001_0", "MCUCXR_0104_1"):
        put(base / f"CXR_png/{name}.png")
    put(base / "CXR_png/Thumbs.db")
    picture(base / "ManualMask/leftMask/MCUCXR_0001_0.png", (5, 2, 30, 12))
    picture(base / "ManualMask/rightMask/MCUCXR_0001_0.png", (5, 16, 30, 26))
    reading = "Patient's Sex: F\nPatient's Age: 026Y\nnormal\n"
    put(base / "ClinicalReadings/MCUCXR_0001_0.txt", reading)
    inputs = read("montgomery", tmp_path)
    normal, ill = inputs.rows.values()
    assert known(normal) == {"No Finding": 1, "Tuberculosis": 0}
    assert known(ill) == {"No Finding": 0, "Tuberculosis": 1}
    assert inputs.reports == {"montgomery:0001": {**NO_REPORT, "findings": "normal"}}
    assert (normal.mask_source, ill.mask_source) == ("montgomery-manual", "")
    assert (normal.sex, normal.age, ill.sex, ill.age) == ("F", 26, "", None)
    (film,) = inputs.masks
    mask = read_given(inputs.masks[film])
    assert mask.sum() == 2 * 25 * 10 and mask[6, 3] and mask[6, 20] and not mask[6, 14]
    before = mask_digest(inputs.masks[film])
    picture(base / "ManualMask/rightMask/MCUCXR_0001_0.png", (5, 16, 30, 27))
    assert mask_digest(inputs.masks[film]) != before
    Image.new("L", (9, 9)).save(base / "ManualMask/rightMask/MCUCXR_0001_0.png")
    with pytest.raises(FilmError, match="differ in size"):
        read_given(inputs.masks[film])


def test_shenzhen(tmp_path):
    for name in ("CHNCXR_0001_0", "CHNCXR_0327_1"):
        put(tmp_path / f"CXR_png/{name}.png")
    put(
        tmp_path / "ClinicalReadings/CHNCXR_0327_1.txt",
        b"male 45yrs\r\nPTB in the right lung\xa3\r\n",
    )
    picture(tmp_path / "mask/CHNCXR_0327_1_mask.png", (5, 2, 30, 12))
    inputs = read("shenzhen", tmp_path)
    normal, ill = inputs.rows.values()
    assert known(ill) == {"No Finding": 0, "Tuberculosis": 1} and normal.patient == "shenzhen:0001"
    assert inputs.reports["shenzhen:0327"]["findings"].startswith("PTB in the right lung")
    assert set(inputs.masks) == {"CHNCXR_0327_1.png"} and ill.mask_licence == "CC-BY-NC-SA-4.0"
    assert normal.mask_licence == "" and normal.view == "Frontal"
    with pytest.raises(DataError, match="--reports .*: adapter shenzhen reads no such file"):
        read("shenzhen", tmp_path, reports=tmp_path)


XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">Cough</AbstractText>
<AbstractText Label="FINDINGS">Small left effusion.</AbstractText>
<AbstractText Label="IMPRESSION"/>
</Abstract></Article></MedlineCitation>
<MeSH>{terms}<automatic>edema</automatic></MeSH>
<parentImage id="CXR{name}_IM-0001-3001"/>
<parentImage id="CXR{name}_IM-0001-4001"/></eCitation>"""


def test_open_i_as_nlm_has_it(tmp_path):
    terms = "<major>Pleural Effusion/left/small</major><major>Opacity/lung/base/left</major>"
    terms = {1: terms, 2: "<major>normal</major>", 3: "<major>No Indexing</major>"}
    for uid, name in {1: "1_1", 2: "2", 3: "3"}.items():  # the first is named so
        text = XML.format(uid=uid, name=name, terms=terms[uid])
        put(tmp_path / f"ecgen-radiology/{uid}.xml", text)
        put(tmp_path / f"NLMCXR_png/CXR{name}_IM-0001-3001.png")
    put(tmp_path / "NLMCXR_dcm/1/1_IM-0001-4001.dcm")
    inputs = read("open-i", tmp_path)
    first, second, third = (
        inputs.rows[f"NLMCXR_png/CXR{name}_IM-0001-3001.png"] for name in ("1_1", "2", "3")
    )
    positive = {name for name, value in known(first).items() if value == 1}
    assert positive == {"Pleural Effusion", "Lung Opacity"} and known(first)["Edema"] == 0
    assert known(second)["No Finding"] == 1 and known(third) == {}
    assert inputs.rows["NLMCXR_dcm/1/1_IM-0001-4001.dcm"] == first
    assert inputs.reports["openi:1"] == {
        "findings": "Small left effusion.",
        "impression": "",
        "indication": "Cough",
        "comparison": "None.",
    }
    assert first.patient == first.study == "openi:1" and inputs.orphans == 2
    put(tmp_path / "ecgen-radiology/4.xml", '<!DOCTYPE x [<!ENTITY a "aa">]><x>&a;</x>')
    with pytest.raises(DataError, match="4.xml: no report"):
        read("open-i", tmp_path)
    put(tmp_path / "ecgen-radiology/4.xml", "<eCitation>\n<b>")
    with pytest.raises(DataError, match="4.xml, line 2: not XML"):
        read("open-i", tmp_path)


def test_open_i_as_kaggle_has_it(tmp_path):
    names = ("1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png")
    for name in names:
        put(tmp_path / f"images/images_normalized/{name}")
    rows = [("1", names[0], "Frontal"), ("1", names[1], "Lateral")]
    table(tmp_path / "indiana_projections.csv", ("uid", "filename", "projection"), *rows)
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression".split(",")
    row = ["1", "Cardiomegaly/borderline;Aorta/tortuous", "", "", "a", "b", "Large heart.", "Same."]
    table(tmp_path / "indiana_reports.csv", header, row)
    inputs = read("open-i", tmp_path)
    frontal, lateral = (inputs.rows[f"images/images_normalized/{name}"] for name in names)
    assert (frontal.view, lateral.view) == ("Frontal", "L")
    positive = {name for name, value in known(frontal).items() if value}
    assert positive == {"Cardiomegaly", "Tortuous Aorta"} and lateral.findings == frontal.findings
    assert [*inputs.reports["openi:1"].values()] == ["Large heart.", "Same.", "a", "b"]


def test_every_class_of_every_source_is_on_the_list():
    for names in (CHEXPERT, VINDR, CXR_LT, ["Other disease", "Other diseases", "No finding"]):
        assert all(find(name) is not None for name in names)
        assert len({find(name) for name in names}) == len(set(names)) - ("Other disease" in names)


def test_real_films_are_joined(cxr):
    inputs = read("plain", cxr)
    assert (len(inputs.films), len(inputs.rows), len(inputs.masks)) == (186, 186, 164)
    assert inputs.orphans == 0 and not inputs.refused and not inputs.notes
    with (cxr / "labels.csv").open() as file:
        columns = list(csv.DictReader(file))
    for name in ("No_Finding", "Lung_Opacity", "Tuberculosis", "COVID-19"):
        index = find(name)
        told = [row.findings[index] for row in inputs.rows.values()]
        for value in (1, 0):
            assert told.count(value) == sum(row[name] == str(value) for row in columns)
    assert {row.licence for row in inputs.rows.values()} == {row["licence"] for row in columns}
    rows = [inputs.rows[row["image"].removeprefix("images/")] for row in columns]
    assert [row.sex for row in rows] == [row["sex"] for row in columns]
    assert [row.age for row in rows] == [float(r["age"]) if r["age"] else None for r in columns]


def test_the_example_of_the_docs_reads_padchest(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/padchest_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    made = vars(importlib.import_module("padchest_of_the_docs"))
    put(tmp_path / "0/a_1.png")
    header = ("", "ImageID", "StudyID", "PatientID", "Projection", "Labels")
    row = ("0", "a_1.png", "7", "8", "L", "['pleural effusion', 'cardiomegaly']")
    table(tmp_path / f"{made['_TABLE']}.gz", header, row)
    (row,) = made["scan"](tmp_path, masks=None, labels=None, reports=None).rows.values()
    assert row.patient == "padchest:8" and row.view == "L" and len(known(row)) == 5
    assert known(row)["Pleural Effusion"] == 1 and known(row)["Pneumonia"] == 0


def test_every_adapter_stands_in_the_docs():
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    assert all(f"--adapter {name} " in text or name in ("plain", "shenzhen") for name in ADAPTERS)
