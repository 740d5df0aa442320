"""Two files of reports on the studies that both have, and what a set is scored as."""

import pytest

from tests.scores.test_reports import written
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.scores.report_summary import compare, scoring_of
from xmae_jax.scores.reports import Reports


def test_studies_are_those_of_one_id_and_source():
    one = Reports((written(0, "No effusion."), written(1, "Edema.", id="i0", source="else")))
    turned = Reports(one.studies[::-1])
    found = compare(one, turned, "test", meteor=False)
    assert found["studies"] == 2
    assert found["scores"]["rouge_l"]["difference"] == 0
    twice = Reports((*one.studies, written(2, "Edema.", id="i0")))
    with pytest.raises(PredictionsError, match="study i0 stands there twice"):
        compare(one, twice, "test", meteor=False)


def test_what_was_not_made_alike_is_not_scored_as_one():
    one = written(0, "a")
    scoring = scoring_of(Reports((one,)), meteor=False)
    assert (scoring.normalisation, scoring.marks) == ("report-1", "drop_word")
    changes = ({"sections": "impression"}, {"marks": "keep"}, {"normalisation": "none"})
    for change in changes:
        other = written(0, "a", **change)
        with pytest.raises(PredictionsError, match="different sections, normalisation or marks"):
            scoring_of(Reports((one, other)), meteor=False)
        with pytest.raises(PredictionsError, match="different sections, normalisation or marks"):
            compare(Reports((one,)), Reports((other,)), "test", meteor=False)


def test_texts_are_cut_as_others_cut_them_there():
    mimic = written(0, "a", source="MIMIC-CXR-JPG")
    cuts = [
        scoring_of(Reports(of), meteor=False).cut for of in ((mimic,), (mimic, written(1, "b")))
    ]
    assert cuts == [99, 59]
