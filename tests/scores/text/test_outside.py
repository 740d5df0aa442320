"""Scores of another environment: what its script writes, and what is merged."""

import importlib.metadata
import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import radeval_scores
from xmae_jax.scores.text import outside

HEADER = "split,id,generated,reference\n"
LINES = 'val,1,"a, b",a\ntest,2,"c\nd",d\ntest,3,,e\ntest,4,f,\n'


class Scorer:
    """A made radeval: the share of texts that are their references, and what is no number."""

    def __init__(self, metrics, show_progress):
        assert metrics == ["one"] and show_progress is False

    def __call__(self, refs, hyps):
        assert all(refs)
        exact = sum(a == b for a, b in zip(refs, hyps, strict=True)) / len(refs)
        return {"exact": exact, "studies": len(refs), "labels": {"Edema": 1.0}}


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "radeval", SimpleNamespace(RadEval=Scorer))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0")
    file = tmp_path / "predictions.csv"
    file.write_text(HEADER + LINES)
    assert radeval_scores.main([str(file), "--metrics", "one"]) == 0
    return tmp_path


def test_the_file_is_merged_by_digest(written):
    assert {path.name for path in written.iterdir()} == {"predictions.csv", outside.NAME}
    assert outside.NAME == radeval_scores.NAME
    file = written / "predictions.csv"
    found = outside.read(file, split="test")
    scores = {"exact": 0.0, "studies": 2.0}
    assert found == {"tool": "radeval 0.0", "studies": 2, "scores": scores}
    assert outside.read(file, split="val")["studies"] == 1
    none = outside.read(file, split="train")
    assert none == {"why": "outside_scores.json has no scores of split 'train'"}
    file.write_text(HEADER + LINES + "test,5,a,b\n")
    other = outside.read(file, split="test")
    assert other == {"why": "outside_scores.json is of other predictions"}


def test_nothing_there_is_nothing(tmp_path):
    assert outside.read(tmp_path / "predictions.csv", split="test") is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"splits": {"test": {"studies": 2, "scores": {"a": float("nan")}}}}, "no finite number"),
        ({"splits": {"test": {"studies": 2, "scores": {"a": "high"}}}}, "no scores of split"),
        ({"splits": []}, "no scores of split"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_told(written, change, why):
    file = written / outside.NAME
    found = json.loads(file.read_text())
    file.write_text("{" if change is None else json.dumps(found | change))
    assert why in outside.read(written / "predictions.csv", split="test")["why"]
