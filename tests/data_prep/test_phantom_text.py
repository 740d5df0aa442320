"""Reports of phantoms: twenty sentences a finding, each true, plain and sided."""

import re
from dataclasses import replace

import pytest

from data_prep.phantom_anatomy import FINDINGS
from data_prep.phantom_raster import Draws
from data_prep.phantom_templates import ABSENT, NORMAL, NORMAL_HEART, PRESENT
from data_prep.phantom_text import fields_of, fill, millimetres, write, zone
from tests.data_prep.test_phantoms import films, study_of

# What a rule labeller goes by: a word for each finding, and words that deny or doubt it.
NAMES = {
    "Atelectasis": r"atelecta(sis|tic)",
    "Cardiomegaly": r"cardiomegaly|(heart|cardiac)\b.*\benlarged|enlarged (heart|cardiac)"
    r"|enlargement of the (heart|cardiac)|cardiac enlargement",
    "Consolidation": r"consolidati(on|ve)",
    "Edema": "edema",
    "Effusion": "effusion",
    "Nodule": "nodule",
    "Pneumothorax": "pneumothorax",
}
DENIED = r"\b(no|not|without|negative|absent)\b"
NORMAL_SIZE = r"normal|within normal limits"
HEDGED = r"\b(may|might|possibl[ey]|probabl[ey]|suggest\w*|question\w*|cannot|likely|versus|or)\b"
SIDED = {*FINDINGS} - {"Cardiomegaly", "Edema"}


def sentence(name: str, template: str, side: int = -1) -> str:
    study, _ = study_of(0, *films(lambda s, v: "Nodule" in s.planted, 1))
    finding = replace(study.planted["Nodule"], side=side)
    fields = fields_of(name, finding) | {"degree": "mild", "ratio": 0.53}
    return fill(template, **fields)


@pytest.mark.parametrize("name", FINDINGS)
def test_every_sentence_names_its_finding_and_its_side(name):
    assert len(set(PRESENT[name])) == len(PRESENT[name]) == 20
    for template in PRESENT[name]:
        text = sentence(name, template)
        assert re.search(NAMES[name], text, re.I), text
        assert not re.search(f"{DENIED}|{HEDGED}", text, re.I), text
        others = [other for other in FINDINGS if other != name]
        assert not any(re.search(NAMES[other], text, re.I) for other in others), text
        sides = re.findall(r"\b(right|left)\b", text, re.I)
        assert [side.lower() for side in sides] == ["right"] * (name in SIDED), text
        assert ("left" in sentence(name, template, 1).lower()) == (name in SIDED)
        assert text[0].isupper() and text[-1] == "." and "{" not in text


def test_every_denial_names_what_it_denies():
    assert set(ABSENT) == set(FINDINGS) - {"Cardiomegaly"}
    for name, templates in ABSENT.items():
        assert len(set(templates)) == len(templates) == 20
        for text in templates:
            assert re.search(NAMES[name], text) and re.search(DENIED, text), text
    for text in NORMAL_HEART:
        assert re.search(NORMAL_SIZE, text) or (
            re.search(DENIED, text) and re.search(NAMES["Cardiomegaly"], text)
        ), text
    assert len(set(NORMAL_HEART)) == len(set(NORMAL)) == 20
    assert not any(re.search(word, text) for word in NAMES.values() for text in NORMAL)


def test_reports_say_what_was_planted():
    said: dict[str, set[str]] = {}
    for index in range(1_500):
        study, _ = study_of(2, index)
        findings, impression = write(study, Draws(2, index))
        texts = re.split(r"(?<=[.]) (?=[A-Z])", findings)
        for name, present in study.labels.items():
            if name == "No_Finding":
                continue
            told = [text for text in texts[2:] if re.search(NAMES[name], text, re.I)]
            if name == "Cardiomegaly":
                told = [texts[1]]
            denied = [bool(re.search(f"{DENIED}|{NORMAL_SIZE}", text, re.I)) for text in told]
            assert denied == ([False] if present else [True] * len(told)), findings
            if name in ("Effusion", "Pneumothorax"):
                assert told
            assert bool(re.search(NAMES[name], impression, re.I)) == bool(present), impression
            for text in told:
                words = r"\b(left|right|upper|mid|lower|small|trace|moderate|large|mild|moderately"
                kind = re.sub(words + r"|mildly)\b|[\d.]+", "#", text.lower())
                said.setdefault(f"{name} {present}", set()).add(kind)
            if present and name in SIDED:
                side = "right" if study.planted[name].side < 0 else "left"
                other = {"right": "left", "left": "right"}[side]
                assert side in told[0].lower() and other not in told[0].lower(), told
        if "Nodule" in study.planted:
            nodule = study.planted["Nodule"]
            side = "right" if nodule.side < 0 else "left"
            assert f"{side} {zone(nodule)} zone nodule" in impression.lower()
            assert f"{millimetres(nodule)} mm" in impression
        assert ("and lateral views" in findings) == (len(study.views) == 2)
    # Some differ in nothing but their numbers.
    assert min(map(len, said.values())) >= 17, {name: len(kinds) for name, kinds in said.items()}
