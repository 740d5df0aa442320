"""Films that no table names: their patient and split come from what their names say."""

import json

import pytest

from data_prep.adapters.nlm_tb import scan_shenzhen
from data_prep.adapters.openi import mesh_labels
from data_prep.inputs import Row
from data_prep.splits import split_of
from tests.data_prep import trees
from tests.data_prep.trees import CHEXPERT, CXR_LT, VINDR, chestxray14, known, put, read, table
from xmae_jax.data.text import sections

REST = "films that no table names: patients by the films' names"


@pytest.fixture
def mimic(tmp_path):
    return trees.mimic(tmp_path / "mimic")


def test_mimic_films_follow_the_patient_of_their_folder(mimic):
    put(mimic / "files/p10/p10000032/s50000001/zzz.jpg")
    put(mimic / "files/p19/p19000019/s59000009/yyy.jpg")
    put(mimic / "mimic-cxr-reports/files/p19/p19000019/s59000009.txt", "FINDINGS: Clear.\n")
    put(mimic / "elsewhere.jpg")
    inputs = read("mimic-cxr-jpg", mimic)
    row = inputs.rows["files/p10/p10000032/s50000001/zzz.jpg"]
    assert (row.patient, row.study) == ("mimic:10000032", "mimic:50000001")
    assert row.split == "train" and known(row) == {} and row.licence.startswith("PhysioNet")
    row = inputs.rows["files/p19/p19000019/s59000009/yyy.jpg"]
    assert (row.patient, row.split) == ("mimic:19000019", "")
    assert inputs.reports[row.study]["findings"] == "Clear."
    assert "elsewhere.jpg" not in inputs.rows and inputs.notes == (f"2 {REST}",)


@pytest.mark.parametrize("whole", [False, True])
def test_cxr_lt_keeps_patients_whole_beside_the_table_of_a_task(mimic, whole):
    put(mimic / "files/p12/p12000012/s53333333/ddd-1.jpg")  # of the patient in the task
    task = mimic / "cxr-lt-2024/test_labeled_task2.csv"
    header = ["dicom_id", "subject_id", "study_id", "fpath", *CXR_LT[:26]]
    table(task, header, ["ccc-1", "12000012", "52222222", "", *["1"] * 26])
    if whole:
        rows = ((*MIMIC_ROW[name], *["0"] * 45) for name in MIMIC_ROW)
        table(mimic / "cxr-lt-2024/labels.csv", [*header[:3], "split", *CXR_LT], *rows)
    inputs = read("cxr-lt-2024", mimic, labels=task)
    assert set(inputs.rows) == set(inputs.films) and len(inputs.films) == 5
    told = {film.rpartition("/")[2][:5]: row for film, row in inputs.rows.items()}
    assert {name: row.patient for name, row in told.items()} == {
        "aaa-1": "mimic:10000032",
        "aaa-2": "mimic:10000032",
        "bbb-1": "mimic:11000011",
        "ccc-1": "mimic:12000012",
        "ddd-1": "mimic:12000012",
    }
    assert {name: row.split for name, row in told.items()} == {
        "aaa-1": "train",
        "aaa-2": "train",
        "bbb-1": "val" if whole else "train",
        "ccc-1": "test",
        "ddd-1": "test",
    }
    assert told["aaa-1"].study == told["aaa-2"].study == "mimic:50414267"
    assert len(known(told["ccc-1"])) == 26 and known(told["ddd-1"]) == {}
    assert len(inputs.reports) == 2 and len(inputs.tables) == 1 + whole


MIMIC_ROW = {
    "aaa-1": ("aaa-1", "10000032", "50414267", "train"),
    "bbb-1": ("bbb-1", "11000011", "51111111", "development"),
    "ccc-1": ("ccc-1", "12000012", "52222222", "train"),  # the task's own table goes first
}


@pytest.mark.parametrize("base", ["CheXpert-v1.0-small", "chexlocalize/CheXpert", "a/b/c"])
def test_chexpert_films_are_where_their_path_puts_them(tmp_path, base):
    trees.chexpert(tmp_path)
    (tmp_path / "CheXpert-v1.0-small/test_labels.csv").unlink()
    test = tmp_path / base / "test/patient64750/study1"
    for name in ("view1_frontal", "view2_lateral"):
        put(test / f"{name}.jpg")
    put(tmp_path / "CheXpert-v1.0 batch 3 (train 2)/patient00001/study2/view1_frontal.jpg")
    put(tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)/patient64600/study1/view2_lateral.jpg")
    put(tmp_path / "latest/patient00002/study3/view1_frontal.jpg")  # names no split
    inputs = read("chexpert", tmp_path)
    assert set(inputs.rows) == set(inputs.films)
    told = {
        (row.patient.removeprefix("chexpert:patient"), row.study[-1], row.view): row.split
        for row in inputs.rows.values()
        if known(row) == {} and row.source == "CheXpert"
    }
    assert told[("64750", "1", "Frontal")] == told[("64750", "1", "L")] == "test"
    assert told[("64741", "1", "Frontal")] == "test"
    assert told[("00001", "2", "Frontal")] == told[("00002", "3", "Frontal")] == "train"
    assert told[("64600", "1", "L")] == "val"


def test_chexpert_takes_the_labels_of_chexlocalize(tmp_path):
    trees.chexpert(tmp_path)
    (tmp_path / "CheXpert-v1.0-small/test_labels.csv").unlink()
    put(tmp_path / "chexlocalize/CheXpert/test/patient64750/study1/view1_frontal.jpg")
    row = ["test/patient64750/study1/view1_frontal.jpg", *["1"] * 14]
    table(tmp_path / "chexlocalize/CheXpert/test_labels.csv", ["Path", *CHEXPERT], row)
    rows = read("chexpert", tmp_path).rows.values()
    (row,) = (row for row in rows if row.patient == "chexpert:patient64750")
    assert row.split == "test" and row.view == "Frontal" and len(known(row)) == 14


def test_rsna_films_without_labels_are_their_patients_of_chestxray14(tmp_path):
    for name in ("train_images/p1", "test_images/t1", "test_images/t2", "test_images/t3"):
        put(tmp_path / f"stage_2_{name}.dcm")
    header = ("patientId", "x", "y", "width", "height", "Target")
    table(tmp_path / "stage_2_train_labels.csv", header, ("p1", "", "", "", "", "0"))
    classes = tmp_path / "stage_2_detailed_class_info.csv"
    table(classes, ("patientId", "class"), ("p1", "Normal"))
    assert set(read("rsna-pneumonia", tmp_path).rows) == {"stage_2_train_images/p1.dcm"}
    images = {"p1": "00000007_000.png", "t1": "00000007_001.png", "t2": "00000008_000.png"}
    mapping = [{"subset_img_id": name, "img_id": image} for name, image in images.items()]
    put(tmp_path / "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping))
    inputs = read("rsna-pneumonia", tmp_path)
    assert {film[-6:-4]: row.patient for film, row in inputs.rows.items()} == {
        "p1": "nih:7",
        "t1": "nih:7",
        "t2": "nih:8",
    }
    row = inputs.rows["stage_2_test_images/t1.dcm"]
    assert known(row) == {} and row.source == "RSNA Pneumonia" and row.licence


def test_chestxray14_films_are_of_the_patient_in_their_name(tmp_path):
    names = chestxray14(tmp_path)
    for name in ("00000001_007.png", "00000051_007.png", "00000099_000.png", "cover.png"):
        put(tmp_path / f"images_001/images/{name}")
    put(tmp_path / "test_list.txt", "\n".join([*names[-20:], "00000099_000.png"]))
    inputs = read("chestx-ray14", tmp_path)
    rows = {film.rpartition("/")[2]: row for film, row in inputs.rows.items()}
    assert rows["00000001_007.png"].patient == "nih:1" and known(rows["00000001_007.png"]) == {}
    assert rows["00000001_007.png"].split == rows[names[0]].split in ("train", "val")
    assert rows["00000051_007.png"].split == rows["00000099_000.png"].split == "test"
    assert "cover.png" not in rows


def test_vindr_films_stay_in_their_split(tmp_path):
    for index in range(40):
        put(tmp_path / f"train/a{index}.dicom")
    put(tmp_path / "test/c.dicom")
    put(tmp_path / "d.dicom")
    header = ["image_id", *VINDR]
    for split, name in (("train", "a0"), ("test", "gone")):
        path = tmp_path / f"annotations/image_labels_{split}.csv"
        table(path, header, [name, *["0"] * len(VINDR)])
    rows = read("vindr-cxr", tmp_path).rows
    assert rows["test/c.dicom"].split == "test" and rows["test/c.dicom"].patient == "vindr:c"
    trained = {f"vindr:a{index}": rows[f"train/a{index}.dicom"].split for index in range(40)}
    assert trained == {
        name: "val" if split_of(name) == "val" else "train" for name in trained
    } and "test" in {split_of(name) for name in trained}
    assert "d.dicom" not in rows


def test_open_i_films_are_of_the_report_in_their_name(tmp_path):
    names = ("1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png", "CXR1_1_IM-0001-9.png", "x.png")
    for name in names:
        put(tmp_path / f"images/{name}")
    projections = tmp_path / "indiana_projections.csv"
    table(projections, ("uid", "filename", "projection"), ("1", names[0], "Frontal"))
    header = ("uid", "MeSH", "findings", "impression")
    table(tmp_path / "indiana_reports.csv", header, ("1", "normal", "Clear.", ""))
    rows = read("open-i", tmp_path).rows
    first, second, third = (rows[f"images/{name}"] for name in names[:3])
    assert first.patient == second.patient == third.patient == second.study == "openi:1"
    assert known(second) == {} and second.source == "Open-i" and "images/x.png" not in rows


def test_a_borderline_term_is_uncertain():
    def value(*terms):
        return known(Row(findings=mesh_labels(terms)))["Cardiomegaly"]

    assert value("Cardiomegaly/borderline") == -1
    assert value("Cardiac Shadow/enlarged/borderline", "Aorta/tortuous") == -1
    assert value("Cardiomegaly/mild") == value("Cardiomegaly/borderline", "Cardiomegaly") == 1
    assert value("Cardiomegaly", "Cardiac Shadow/enlarged/borderline") == 1
    assert value("Opacity/lung/borderline") == 0


def test_sub_headings_stay_in_their_section():
    report = sections(
        " FINAL REPORT\n PATIENT HISTORY: Fall.\n LUNGS: not yet.\n\n FINDINGS:\n"
        " AP view.\n LUNGS: Clear.\n ICU:\n PICC: In the SVC.\n\n COMPARISON:  None.\n"
        " HEART: same.\n\n IMPRESSION:\n 1. No change.\n TUBES AND LINES: As above.\n\n"
        " RECOMMENDATION(S):  CT.\n\n NOTIFICATION:  Dr. ___ by phone.\n"
    )
    assert report == {
        "findings": "AP view.\nLUNGS: Clear.\nICU:\nPICC: In the SVC.",
        "impression": "1. No change.\nTUBES AND LINES: As above.",
        "indication": "Fall.\nLUNGS: not yet.",
        "comparison": "None.\nHEART: same.",
    }


@pytest.mark.parametrize(
    ("text", "left", "person"),
    [
        ("Female, 30 years, PTB on the left", "PTB on the left", ("F", 30)),
        ("29 yrs male\nnormal", "normal", ("M", 29)),
        ("F\n45 M\nnormal", "normal", ("F", 45)),
        ("male 5 months: PTB, unchanged for 2 years", "PTB, unchanged for 2 years", ("M", 5 / 12)),
        ("Patient's Sex: F\nPatient's Age: 026Y\n2 nodules.", "2 nodules.", ("F", 26)),
        ("Patient's Sex: M\nPatient's Age: 000Y\nnormal", "normal", ("M", None)),
        ("Patient's Sex: M\nPatient's Age: 018M\nnormal", "normal", ("M", 1.5)),
        ("45-year-old woman with PTB", "with PTB", ("F", 45)),
        ("45Y M\nPTB; a man aged 45", "PTB; a", ("M", 45)),
        ("M. tuberculosis in 12 foci of 45 mm", "M. tuberculosis in 12 foci of 45 mm", ("", None)),
    ],
)
def test_readings_give_sex_and_age_and_lose_no_more(tmp_path, text, left, person):
    put(tmp_path / "CXR_png/CHNCXR_0327_1.png")
    put(tmp_path / "ClinicalReadings/CHNCXR_0327_1.txt", text)
    inputs = scan_shenzhen(tmp_path, masks=None, labels=None, reports=None)
    assert inputs.reports["shenzhen:0327"]["findings"] == left
    (row,) = inputs.rows.values()
    assert (row.sex, row.age) == (person[0], person[1] and pytest.approx(person[1]))
