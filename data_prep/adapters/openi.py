"""Open-i's Indiana University set (Demner-Fushman et al. 2016, https://openi.nlm.nih.gov/faq).

Either NLM's XML reports with PNG or DICOM films, or Kaggle's two tables and PNG films. Labels are
from the MeSH terms by which people indexed each report.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

from data_prep.adapters.shared import labels_of, need, refuse, text_of, there, view_of
from data_prep.inputs import Inputs, Join, Row
from data_prep.tables import UNKNOWN, Labels, Line, Table, bounded
from xmae_jax.data.records import NO_REPORT, DataError, Report

_WHERE = "https://openi.nlm.nih.gov/faq, or Kaggle's raddar/chest-xrays-indiana-university"
_LICENCE = "CC-BY-NC-ND-4.0"
# First word of a term / a later one that it needs -> finding.
_TERMS = {
    "normal": "No Finding",
    "airspace disease": "Lung Opacity",
    "aorta/tortuous": "Tortuous Aorta",
    "aorta, thoracic/tortuous": "Tortuous Aorta",
    "calcified granuloma": "Granuloma",
    "calcinosis/aorta": "Calcification of the Aorta",
    "calcinosis/aorta, thoracic": "Calcification of the Aorta",
    "cardiac shadow/enlarged": "Cardiomegaly",
    "cardiomegaly": "Cardiomegaly",
    "catheters, indwelling": "Support Devices",
    "consolidation": "Consolidation",
    "emphysema": "Emphysema",
    "bullous emphysema": "Emphysema",
    "pulmonary emphysema": "Emphysema",
    "fractures, bone": "Fracture",
    "granuloma": "Granuloma",
    "hemopneumothorax": "Pneumothorax",
    "hernia, diaphragmatic": "Hernia",
    "hernia, hiatal": "Hernia",
    "hydropneumothorax": "Hydropneumothorax",
    "hypertension, pulmonary": "Pulmonary Hypertension",
    "implanted medical device": "Support Devices",
    "infiltrate": "Infiltration",
    "kyphosis": "Kyphosis",
    "lung diseases, interstitial": "Interstitial Lung Disease",
    "mass/lung": "Mass",
    "medical device": "Support Devices",
    "nodule/lung": "Nodule",
    "opacity/lung": "Lung Opacity",
    "pleural effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia",
    "pneumoperitoneum": "Pneumoperitoneum",
    "pneumothorax": "Pneumothorax",
    "pulmonary atelectasis": "Atelectasis",
    "pulmonary disease, chronic obstructive": "COPD",
    "pulmonary edema": "Edema",
    "pulmonary fibrosis": "Fibrosis",
    "scoliosis": "Scoliosis",
    "subcutaneous emphysema": "Subcutaneous Emphysema",
    "thickening/pleura": "Pleural Thickening",
    "tube, inserted": "Support Devices",
    "tuberculosis": "Tuberculosis",
}
# Of a film's name: CXR2_IM-0652-1001, 2_IM-0652-1001, CXR1_1_IM-0001-3001.
_FILM = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?IM-")
_EMPTY = {"no indexing", "technical quality of image unsatisfactory", ""}


@dataclass(frozen=True)
class _Study:
    uid: str
    terms: tuple[str, ...]
    report: Report
    films: tuple[tuple[str, str], ...]  # names that a film may have, without suffix; its view
    line: Line


def scan(folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None) -> Inputs:
    """Read ecgen-radiology/*.xml, or else indiana_reports.csv; views of indiana_projections.csv.

    reports: the folder of XML files or the table of reports. A report is a patient of its own, as
    far as is known; the XML files do not say which view a film is. There is no official split.
    """
    refuse("open-i", labels=labels)
    folder = folder.resolve()
    place = reports or there(folder, "ecgen-radiology")
    place = place or need(folder, "indiana_reports.csv", where=_WHERE)
    table = there(folder, "indiana_projections.csv")
    if place.is_dir():
        studies = _xml(place, _views(table) if table else {})
        tables = [table] if table else []
    else:
        table = table or need(folder, "indiana_projections.csv", where=_WHERE)
        studies, tables = _csv(place, table), [place, table]
    join = Join(folder, suffixes=(".png", ".dcm"))
    texts: dict[str, Report] = {}
    for study in studies:
        patient = f"openi:{study.uid}"
        texts[patient] = study.report
        findings = mesh_labels(study.terms)
        for names, view in study.films:
            row = replace(_row(study.uid), view=view, findings=findings)
            found = (join.film(name) for name in names.split())
            join.add(next((film for film in found if film is not None), None), row, study.line)
    join.add_rest(_row_of)
    return join.inputs(tables=tables or [place], masks=masks, reports=texts)


def _row(uid: str) -> Row:
    return Row(patient=f"openi:{uid}", study=f"openi:{uid}", source="Open-i", licence=_LICENCE)


def _row_of(film: str) -> Row | None:
    match = _FILM.match(film.rpartition("/")[2])
    return _row(match[1]) if match else None


def mesh_labels(terms: Iterable[str]) -> Labels:
    """Read labels from MeSH terms such as `Opacity/lung/base/left`; what has no term is absent.

    A `borderline` one is uncertain.
    """
    parts = [[part.strip() for part in term.lower().split("/")] for term in terms]
    named = {part[0] for part in parts}
    if named <= _EMPTY:
        return UNKNOWN
    values = dict.fromkeys(_TERMS.values(), 0.0)
    for head, *rest in sorted(parts, key=lambda part: "borderline" not in part):
        for term in (head, *(f"{head}/{part}" for part in rest)):
            if term in _TERMS:
                values[_TERMS[term]] = -1.0 if "borderline" in rest else 1.0
    if values["Hydropneumothorax"] == 1:
        values["Pneumothorax"] = 1.0
    return labels_of(values)


def _csv(reports: Path, projections: Path) -> Iterator[_Study]:
    films: dict[str, list[tuple[str, str]]] = {}
    for line in Table(projections, required=("uid", "filename", "projection")):
        name = line.id("filename").removesuffix(".png")
        films.setdefault(line.id("uid"), []).append((name, view_of(line.word("projection"))))
    for line in Table(reports, required=("uid", "MeSH", "findings", "impression")):
        yield _Study(
            uid=line.id("uid"),
            terms=tuple(line.section("MeSH").split(";")),
            report=line.report(),
            films=tuple(films.get(line.id("uid"), ())),
            line=line,
        )


def _views(table: Path) -> dict[str, str]:
    return {
        line.id("filename").removesuffix(".dcm.png"): view_of(line.word("projection"))
        for line in Table(table, required=("filename", "projection"))
    }


def _xml(folder: Path, views: dict[str, str]) -> Iterator[_Study]:
    """Parse the reports; a film CXR2_IM-0652-1001 may be called so, 2_IM-... or 2_IM-....dcm."""
    paths = sorted(folder.glob("*.xml"))
    if not paths:
        raise DataError(f"{folder}: no 1.xml, 2.xml, ... (from {_WHERE})")
    for path in paths:
        root = _parse(path)
        texts = {part.get("Label", ""): part.text or "" for part in root.iter("AbstractText")}
        names = [image.get("id", "") for image in root.iter("parentImage")]
        found = root.find("uId")
        uid = (found.get("id", "") if found is not None else "").removeprefix("CXR") or path.stem
        # Report 1 alone has its number twice: CXR1_1_IM-0001-3001 is the film 1_IM-0001-3001.
        shorts = [name.removeprefix("CXR").replace(f"{uid}_{uid}_", f"{uid}_") for name in names]
        yield _Study(
            uid=uid,
            terms=tuple(term.text or "" for term in root.iter("major")),
            report=bounded(cast(Report, {name: texts.get(name.upper(), "") for name in NO_REPORT})),
            films=tuple(
                (f"{name} {short} {short}.dcm", views.get(short, ""))
                for name, short in zip(names, shorts, strict=True)
            ),
            line=Line(path, 1, 0, 0, {}),
        )


def _parse(path: Path) -> ElementTree.Element:
    text = text_of(path) or ""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: no report: it has entities of its own")
    try:
        return ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        line, _ = error.position
        raise DataError(f"{path}, line {line}: not XML") from None
