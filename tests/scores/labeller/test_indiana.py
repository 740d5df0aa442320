"""The labeller against what indexers took down of 2,599 real reports, by MeSH codes.

The rules were written on the reports of one half alone; a part of these and their like are kept
apart for acceptance.
"""

import time

import pytest

from benchmarks.labeller import HALVES, compare, read


@pytest.fixture(scope="module")
def reports(cxr):
    return read(cxr / "reports.csv")


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("policy", ["uncertain_present", "uncertain_absent"])
def test_agreement_with_indexers(reports, half, policy):
    scores = compare([one for one in reports if one.half == half], policy)
    assert scores.micro > 0.87 and scores.micro_14 > 0.87
    for name in ("No Finding", "Atelectasis", "Cardiomegaly", "Pleural Effusion", "Lung Opacity"):
        assert scores.findings[name].f1 > 0.8, name


def test_speed(reports):
    started = time.process_time()
    compare(reports, "uncertain_absent")
    assert len(reports) / (time.process_time() - started) > 1000  # type checks and others' load
