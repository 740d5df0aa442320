"""Copies of training, distinct texts and lengths."""

import pytest

from xmae_jax.scores.text.copies import in_training, originality

TRAINING = ["The heart is normal. Clear lungs.", "Effusion.", ""]


def test_copies_are_counted_beside_those_of_references():
    generated = ["the heart is normal. clear lungs", "Effusion", "Effusion.", "", "no effusion."]
    references = ["Effusion.", "A", "B", "C", "D e"]
    texts = {"generated": generated, "references": references}
    known = {
        name: in_training(some, training=iter(TRAINING), tokeniser="r2gen")
        for name, some in texts.items()
    }
    assert known["generated"] == [True, True, True, False, False]
    found = originality(
        {name: list(zip(some, known[name], strict=True)) for name, some in texts.items()},
        tokeniser="r2gen",
    )
    own = found["generated"]
    assert own["copied"] == 3 and own["copied_share"] == pytest.approx(0.6)
    assert (own["reports"], own["empty"], own["distinct"], own["most_frequent"]) == (5, 1, 4, 2)
    assert own["distinct_share"] == pytest.approx(0.8)
    assert own["length"] == pytest.approx(
        {"mean": (8 + 2 + 2 + 0 + 3) / 5, "p5": 0.4, "median": 2.0, "p95": 7.0}
    )
    assert found["references"]["copied"] == 1


def test_without_training_copies_are_unknown():
    found = originality({"generated": [("a", True), ("b", None)]}, tokeniser="r2gen")["generated"]
    assert found["copied"] is None and found["copied_share"] is None


def test_no_text_has_no_length():
    found = originality({"generated": []}, tokeniser="r2gen")["generated"]
    assert found["reports"] == 0 and found["length"]["mean"] is None
