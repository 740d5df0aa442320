"""Two files of reports on the studies that both have, and what a set is scored as."""

import pytest

from tests.scores.test_reports import written
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.scores.report_summary import compare
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
