"""Phantoms' reports, whose findings and sides are known: every one is read without an error."""

import pytest

from data_prep.phantom_anatomy import draw_study, locate
from data_prep.phantom_raster import Draws
from data_prep.phantom_text import write
from xmae_jax.data.findings import FINDINGS, find
from xmae_jax.scores.labeller import label, sides

STUDIES = 1500
UNSIDED = {"Cardiomegaly", "Edema", "No Finding"}


@pytest.fixture(scope="module")
def studies():
    """Draw (labels by our names, side of each sided finding, findings, impression) of studies."""
    drawn = []
    for index in range(STUDIES):
        patient, place = locate(7, index)
        study, _ = draw_study(7, patient, place)
        findings, impression = write(study, Draws(7, 11, patient, study.index))
        labels = {FINDINGS[find(name)]: value for name, value in study.labels.items()}
        wanted = {
            FINDINGS[find(name)]: {"right" if planted.side == -1 else "left"}
            for name, planted in study.planted.items()
        }
        drawn.append((labels, wanted, findings, impression))
    return drawn


def test_findings(studies):
    for labels, _, findings, impression in studies:
        for text in (findings, f"{findings}\n\n{impression}", f"{findings} {impression}"):
            found = label(text)
            assert {name: int(found[name] == 1) for name in labels} == labels, text


def test_what_is_denied_is_absent(studies):
    for labels, _, findings, _ in studies:
        found = label(findings)
        assert all(found[name] != -1 for name in labels), findings
        assert found["Pneumothorax"] == labels["Pneumothorax"], findings


def test_sides(studies):
    for _, wanted, findings, _ in studies:
        found = sides(findings)
        for name, side in wanted.items():
            assert name in UNSIDED or found.get(name) == side, findings
