"""The one list of findings: the order of every stored label vector, and each source's spelling.

Names are CheXpert's where it has one (Irvin et al. 2019, https://arxiv.org/abs/1901.07031), else
those of the source that has the finding. The first 19 keep their places; new ones are added at the
end. A name stands for another here only if the sources mean the same by it: a part of a finding
(`Rib Fracture`, `Lobar Atelectasis`) is one of its own.
"""

import difflib
import re

FINDINGS = (
    "No Finding",
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Lung Opacity",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
    "Tuberculosis",
    "COVID-19",
    "ARDS",
    # the rest of CheXpert and MIMIC-CXR-JPG
    "Enlarged Cardiomediastinum",
    "Lung Lesion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    # the rest of CXR-LT 2024
    "Adenopathy",
    "Azygos Lobe",
    "Bulla",
    "Calcification of the Aorta",
    "Cardiomyopathy",
    "Clavicle Fracture",
    "Fissure",
    "Granuloma",
    "Hilum",
    "Hydropneumothorax",
    "Infarction",
    "Kyphosis",
    "Lobar Atelectasis",
    "Osteopenia",
    "Pneumomediastinum",
    "Pneumoperitoneum",
    "Pulmonary Embolism",
    "Pulmonary Hypertension",
    "Rib Fracture",
    "Rounded Atelectasis",
    "Scoliosis",
    "Subcutaneous Emphysema",
    "Tortuous Aorta",
    # the rest of VinDr-CXR
    "Aortic Enlargement",
    "Calcification",
    "COPD",
    "Enlarged PA",
    "Interstitial Lung Disease",
    "Lung Cavity",
    "Lung Cyst",
    "Lung Tumor",
    "Mediastinal Shift",
    "Other Disease",
    "Other Lesion",
)

# Other spellings; case, "_", "-" and blanks make no difference.
ALIASES = {
    "Normal": "No Finding",  # CXR-LT 2024
    "Effusion": "Pleural Effusion",  # NIH
    "Pulmonary Fibrosis": "Fibrosis",  # VinDr
    "Airspace Opacity": "Lung Opacity",  # the radiologists' test labels of MIMIC-CXR-JPG
    "Nodule/Mass": "Lung Lesion",  # VinDr: one of the two, not said which, as CheXpert's lesion is
    "ILD": "Interstitial Lung Disease",  # VinDr
    "Other diseases": "Other Disease",  # VinDr, in its training table
    "Round(ed) Atelectasis": "Rounded Atelectasis",  # CXR-LT 2024
}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


_INDEX = {_plain(name): index for index, name in enumerate(FINDINGS)}
_INDEX |= {_plain(alias): FINDINGS.index(name) for alias, name in ALIASES.items()}


def find(name: str) -> int | None:
    """Return a finding's place in the label vector by any of its spellings; None if it is none."""
    return _INDEX.get(_plain(name))


def place_of(name: str) -> int:
    """Return a finding's place in the label vector; ValueError with the nearest name if none."""
    place = find(name)
    if place is None:
        close = difflib.get_close_matches(name, FINDINGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} is no finding{hint} (docs/data.md lists them)")
    return place
