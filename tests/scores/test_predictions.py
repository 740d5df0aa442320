"""The table of predictions: what it keeps, and what it refuses by name."""

import numpy as np
import pytest

from tests.scores.made import film, predictions
from xmae_jax.scores.predictions import PredictionsError, from_csv, to_csv


def text(made):
    return to_csv(made.findings, zip(made.films, made.logits, made.labels, strict=True))


def test_what_is_written_is_read():
    made = predictions(40, ties=False)
    again = from_csv(text(made), name="it")
    assert again.findings == made.findings
    for one, other in zip(again.films, made.films, strict=True):
        assert one[:-1] == other[:-1] and (one.age == other.age or np.isnan(other.age))
    np.testing.assert_array_equal(again.logits.astype(np.float32), made.logits.astype(np.float32))
    np.testing.assert_array_equal(again.labels, made.labels)
    assert text(again) == text(made)


def test_splits_patients_and_studies():
    films = [
        film(0), film(1), film(2, split="val"), film(3, patient="", study=""),
        film(4, patient="", study=""), film(5, patient="p0", study=""),
    ]  # fmt: skip
    made = predictions(6)
    made = type(made)(made.findings, tuple(films), made.logits, made.labels)
    assert made.patients().tolist() == [0, 0, 0, 1, 2, 0]
    assert made.studies().tolist() == [0, 0, 1, 2, 3, 4]
    val = made.of_split("val")
    assert [f.id for f in val.films] == ["id2"]
    np.testing.assert_array_equal(val.labels, made.labels[2:3])


def broken(change):
    lines = text(predictions(4)).splitlines()
    cells = [line.split(",") for line in lines]
    change(cells)
    return "\n".join(",".join(line) for line in cells) + "\n"


def set_cell(row, column, value):
    return lambda cells: cells[row].__setitem__(column, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_cell(2, 10, "nan"), "line 3, logit:Edema: the score is no finite number"),
        (set_cell(1, 12, "inf"), "line 2, logit:Mass: the score is no finite number"),
        (set_cell(1, 12, ""), "line 2, logit:Mass: the score is no finite number"),
        (set_cell(1, 13, "2"), "line 2, label:Mass: none of 1, 0, u and nothing"),
        (set_cell(3, 2, "1"), "line 4: the film of line 3 again"),
        (set_cell(3, 2, "one"), "line 4: source_index, index or age is no number"),
        (set_cell(3, 0, "../../out"), "line 4, split: not 1 to 64 letters"),
        (set_cell(3, 0, ".out"), "line 4, split: not 1 to 64 letters"),
        (set_cell(3, 2, "-1"), "line 4: source_index, index or age is no number"),
        (set_cell(3, 9, "old"), "line 4: source_index, index or age is no number"),
        (set_cell(0, 3, "name"), "its columns are not those of predictions.csv"),
        (lambda cells: cells[2].pop(), "line 3: 15 values in 16 columns"),
        (set_cell(2, 5, "s" * 5_000_000), "line 3: not CSV"),
        (lambda cells: cells[0].__setitem__(slice(12, 14), cells[0][10:12]), "logit:Edema stands"),
        (lambda cells: cells.__delitem__(slice(1, None)), "it: a header and no film"),
        (lambda cells: cells.clear(), "its columns are not those of predictions.csv"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(PredictionsError, match="it") as caught:
        from_csv(broken(change), name="it")
    assert message in str(caught.value)
