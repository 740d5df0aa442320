"""The National Library of Medicine's Montgomery and Shenzhen sets (Jaeger et al. 2014).

https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets; the masks of
Shenzhen are Stirenko et al.'s (2018), https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

from data_prep.adapters.shared import labels_of, need, refuse, text_of, there
from data_prep.given import Mask, Parts
from data_prep.inputs import Inputs, Join, Row
from data_prep.tables import bounded
from xmae_jax.data.people import age_of, sex_of
from xmae_jax.data.records import NO_REPORT, Report

_WHERE = "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html"
# "Female, 30 years", "29 yrs male", "male 5 months", "45-year-old man", and where a line begins
# "F", "M 45", "30 years"; a number alone is an age beside a sex only.
_GAP = r"(?:[\s,;:/.-]|\baged?\b)*"
_OLD = rf"\b\.?(?:{_GAP}old\b)?"
_YEARS = rf"\d{{1,3}}{_GAP}y(?:[a-z]{{0,4}}|/o){_OLD}"
_AGE = rf"(?:{_YEARS}|\d{{1,3}}{_GAP}(?:mo|week|wk|day)[a-z]{{0,4}}{_OLD}|\d{{2,3}}\b)"
_SEX = r"\b(?:(?:fe)?males?|(?:wo)?man|boy|girl)\b"
_PERSON = re.compile(
    rf"(?:patient'?s?\s+(?:sex|age)\b|\b(?:sex|age)\s*:){_GAP}(?:{_YEARS}|\S*)"
    rf"|(?:{_AGE}{_GAP})?{_SEX}(?:{_GAP}{_AGE})?"
    rf"|^\s*(?:[mf](?:{_GAP}{_AGE}|\s*(?:[,;:/]|$))|{_AGE}{_GAP}[mf]\b|{_YEARS})",
    re.IGNORECASE,
)
_A_SEX = re.compile(r"\b(?:[fm]|(?:fe)?male|(?:wo)?man|boy|girl)\b", re.IGNORECASE)
_AN_AGE = re.compile(rf"\b(\d{{1,3}}){_GAP}(y|mo|w|d|(?<=\d{{3}})m\b)?", re.IGNORECASE)


def scan_montgomery(
    folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None
) -> Inputs:
    """Read CXR_png/MCUCXR_0001_0.png, its two parts in ManualMask/, and its ClinicalReadings/."""
    refuse("montgomery", labels=labels, reports=reports)
    join = _films(folder, "MontgomerySet")
    sides = [join.root.parent / "ManualMask" / side for side in ("leftMask", "rightMask")]
    given: dict[str, Mask] = {
        film: Parts(tuple(side / film for side in sides))
        for film in join.films
        if all((side / film).is_file() for side in sides)
    }
    row = Row(
        view="PA",
        source="Montgomery",
        mask_source="montgomery-manual",
        licence="NLM-public-use (cite Jaeger 2014)",
        mask_licence="NLM-public-use",
    )
    return _inputs(join, r"MCUCXR_(\d+)_([01])\.png", row, masks, given)


def scan_shenzhen(
    folder: Path, *, masks: Path | None, labels: Path | None, reports: Path | None
) -> Inputs:
    """Read CXR_png/CHNCXR_0001_0.png, its ClinicalReadings/, and mask/CHNCXR_0001_0_mask.png.

    The masks are another download, and optional.
    """
    refuse("shenzhen", labels=labels, reports=reports)
    join = _films(folder, "ChinaSet_AllFiles")
    base = there(folder.resolve(), "mask") or there(join.root.parent, "mask")
    names = {film: f"{film.removesuffix('.png')}_mask.png" for film in join.films}
    given: dict[str, Mask] = {}
    if base is not None:
        given = {film: base / name for film, name in names.items() if (base / name).is_file()}
    row = Row(
        view="Frontal",  # PA and AP, not said which
        source="Shenzhen",
        mask_source="shenzhen-manual-stirenko",
        licence="NLM-public-use (cite Jaeger 2014)",
        mask_licence="CC-BY-NC-SA-4.0",
    )
    return _inputs(join, r"CHNCXR_(\d+)_([01])\.png", row, masks, given)


def _films(folder: Path, name: str) -> Join:
    folder = folder.resolve()
    return Join(
        there(folder, f"{name}/CXR_png") or need(folder, "CXR_png", where=_WHERE),
        suffixes=(".png",),
    )


def _inputs(
    join: Join, pattern: str, row: Row, masks: Path | None, given: dict[str, Mask]
) -> Inputs:
    """Read what a film's name says (0 normal, 1 signs of tuberculosis) and its reading."""
    reports: dict[str, Report] = {}
    for film in join.films:
        match = re.fullmatch(pattern, film)
        if match is None:
            continue
        patient = f"{row.source.lower()}:{match[1]}"
        ill = float(match[2])
        found = labels_of({"No Finding": 1 - ill, "Tuberculosis": ill})
        mine = masks is None and film in given
        text, sex, age = _reading(join.root.parent / "ClinicalReadings" / f"{film[:-4]}.txt")
        join.rows[film] = replace(
            row,
            sex=sex,
            age=age,
            patient=patient,
            study=patient,
            findings=found,
            mask_source=row.mask_source if mine else "",
            mask_licence=row.mask_licence if mine else "",
        )
        if text:
            reports[patient] = bounded({**NO_REPORT, "findings": text})
    return join.inputs(tables=(), masks=masks or given, reports=reports)


def _reading(path: Path) -> tuple[str, str, float | None]:
    """Read a radiologist's words without the person's sex and age, and these."""
    lines = (text_of(path) or "").splitlines()
    words = (
        _PERSON.sub(" ", line).strip(" \t,;:/.-") if _PERSON.search(line) else line.strip()
        for line in lines
    )
    person = " ".join(found[0] for line in lines for found in _PERSON.finditer(line))
    sex, found = _A_SEX.search(person), _AN_AGE.search(person)
    age = age_of("".join(part or "" for part in found.groups())) if found else None
    return (
        " ".join(filter(None, words)),
        (sex_of(sex[0]) or "") if sex else "",
        None if age is None or math.isnan(age) else age,
    )
