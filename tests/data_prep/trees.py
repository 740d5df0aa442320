"""The published layouts in small, for the tests of what reads them."""

import csv
import gzip
import math

from data_prep.adapters import ADAPTERS
from xmae_jax.data.findings import FINDINGS

CHEXPERT = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
).split(",")
VINDR = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,"
    "Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,"
    "Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,"
    "Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis"
).split(",")
CXR_LT = (
    "Adenopathy,Atelectasis,Azygos Lobe,Bulla,Calcification of the Aorta,Cardiomegaly,"
    "Cardiomyopathy,Clavicle Fracture,Consolidation,Edema,Emphysema,Enlarged Cardiomediastinum,"
    "Fibrosis,Fissure,Fracture,Granuloma,Hernia,Hilum,Hydropneumothorax,Infarction,Infiltration,"
    "Kyphosis,Lobar Atelectasis,Lung Lesion,Lung Opacity,Mass,Nodule,Normal,Osteopenia,"
    "Pleural Effusion,Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,"
    "Pneumoperitoneum,Pneumothorax,Pulmonary Embolism,Pulmonary Hypertension,Rib Fracture,"
    "Round(ed) Atelectasis,Scoliosis,Subcutaneous Emphysema,Support Devices,Tortuous Aorta,"
    "Tuberculosis"
).split(",")


def put(path, content=b"film"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(name, folder, **given):
    return ADAPTERS[name](folder, **{"masks": None, "labels": None, "reports": None, **given})


def known(row):
    """Return the findings that a row says anything of."""
    return {
        name: value
        for name, value in zip(FINDINGS, row.findings, strict=True)
        if not math.isnan(value)
    }


def row_of(header, **values):
    return [values.get(name.replace(" ", "_"), "") for name in header]


MIMIC = {  # dicom -> subject, study, view, split
    "aaa-1": ("10000032", "50414267", "PA", "train"),
    "aaa-2": ("10000032", "50414267", "LATERAL", "train"),
    "bbb-1": ("11000011", "51111111", "AP", "validate"),
    "ccc-1": ("12000012", "52222222", "", "test"),
    "ddd-1": ("12000012", "53333333", "PA", "test"),  # its film is not there
}


def mimic(folder):
    """Make MIMIC-CXR-JPG and its reports: five films, one of which is not there."""
    for dicom, (subject, study, _, _) in MIMIC.items():
        if dicom != "ddd-1":
            put(folder / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg")
    put(folder / "files/p10/p10000032/s50414267/index.html")
    header = (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
        "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
        "PatientOrientationCodeSequence_CodeMeaning"
    ).split(",")
    rows = (
        row_of(header, dicom_id=dicom, subject_id=subject, study_id=study, ViewPosition=view)
        for dicom, (subject, study, view, _) in MIMIC.items()
    )
    table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", header, *rows)
    header = ("dicom_id", "study_id", "subject_id", "split")
    rows = ((dicom, *values[1::-1], values[3]) for dicom, values in MIMIC.items())
    table(folder / "mimic-cxr-2.0.0-split.csv.gz", header, *rows)
    header = ["subject_id", "study_id", *sorted(CHEXPERT)]
    one = row_of(header, study_id="50414267", Pleural_Effusion="1.0", Edema="-1.0", Fracture="0.0")
    table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", header, one)
    report = (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n"
        " INDICATION:  ___M with cough: worse\n \n FINDINGS: \n \n Small effusion.\n"
        " No change.\n \n"
        " IMPRESSION:  Effusion;\n see above.\n"
    )
    put(folder / "mimic-cxr-reports/files/p10/p10000032/s50414267.txt", report)
    put(folder / "mimic-cxr-reports/files/p11/p11000011/s51111111.txt", "No headings here.")
    return folder


FRONTAL = "patient00001/study1/view1_frontal.jpg"


def chexpert(folder, *, batches=False):
    """Make CheXpert, its training films in a folder of the download if `batches`."""
    base = folder / "CheXpert-v1.0-small"
    train = folder / "CheXpert-v1.0 batch 2 (train 1)" if batches else base / "train"
    put(train / FRONTAL)
    put(train / "patient00001/study1/view2_lateral.jpg")
    put(train / "patient00002/study1/view1_frontal.jpg")
    put(base / "valid/patient64541/study1/view1_frontal.jpg")
    put(base / "test/patient64741/study1/view1_frontal.jpg")
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]
    first = f"CheXpert-v1.0-small/train/{FRONTAL}"
    blank = [""] * 13
    rows = (
        [first, "Female", "68", "Frontal", "AP", "1.0", *blank],
        [first.replace("1_frontal", "2_lateral"), "", "", "Lateral", "", "", *blank],
        [first.replace("00001", "00002"), "", "", "Frontal", "PA", "", *blank[1:], "-1.0"],
        [first.replace("00001", "00003"), "", "", "Frontal", "PA", "", *blank],
    )
    table(base / "train.csv", header, *rows)
    valid = f"CheXpert-v1.0-small/valid/{FRONTAL.replace('00001', '64541')}"
    table(base / "valid.csv", header, [valid, "", "", "Frontal", "PA", *["0.0"] * 14])
    test = f"test/{FRONTAL.replace('00001', '64741')}"
    table(base / "test_labels.csv", ["Path", *CHEXPERT], [test, *["1"] * 14])
    return folder


def chestxray14(folder, *, patients=60):
    """Make two films each of some patients; the last ten are the test set."""
    names = [
        f"{number:08d}_{index:03d}.png" for number in range(1, patients + 1) for index in (0, 1)
    ]
    for index, name in enumerate(names):
        put(folder / f"images_{1 + index % 2:03d}/images/{name}")
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    ).split(",")
    said = ["No Finding", "Cardiomegaly|Effusion", "Pleural_Thickening"]
    rows = (
        [
            name,
            said[index % 3],
            "0",
            str(int(name[:8])),
            "414" if index == 3 else "057Y",
            "M",
            "PA",
            "2",
            "2",
            "0.1",
            "0.1",
        ]
        for index, name in enumerate(names)
    )
    table(folder / "Data_Entry_2017_v2020.csv", header, *rows)
    put(folder / "train_val_list.txt", "\n".join(names[:-20]) + "\n")
    put(folder / "test_list.txt", "\r\n".join(names[-20:]))
    return names
