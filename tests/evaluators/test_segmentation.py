"""Dice and intersection over union by hand, each film once, and a page of pictures."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from xmae_jax.evaluators.segmentation import Segmentation
from xmae_jax.typing import Evaluator


def row(source, index, channel, guess, truth):
    """Make a row of 4 x 4 pixels of which the first `truth` are inside, `guess` of them found."""
    known, drawn = np.zeros((2, 4, 4, 2), np.uint8)
    known[:, :, channel] = 1
    known[0, 0, 1 - channel] = 1  # part of the other channel: not scored
    drawn.reshape(16, 2)[:truth, channel] = 1
    probability = np.full((4, 4, 2), 0.1, np.float32)
    probability.reshape(16, 2)[:guess, channel] = 0.5
    return {
        "image": np.zeros((4, 4, 1), np.uint8),
        "truth": drawn,
        "known": known,
        "probability": probability,
        "id": np.array([source, index], np.int32),
    }


ROWS = [
    row(0, 0, 0, guess=8, truth=4),  # Dice 2/3, IoU 1/2
    row(0, 1, 0, guess=0, truth=0),  # both empty: 1
    row(1, 0, 0, guess=2, truth=0),  # one empty: 0
    row(1, 1, 1, guess=4, truth=4),
]


def test_numbers_by_hand():
    metrics, predictions = Segmentation().evaluate({"val": lambda: ROWS})
    assert metrics["rows"] == 4
    assert metrics["films_lungs"] == 3 and metrics["films_lungs_with_heart"] == 1
    assert metrics["dice_lungs"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["iou_lungs"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert metrics["dice_lungs_source_0"] == pytest.approx(5 / 6)
    assert metrics["dice_lungs_source_1"] == 0
    assert metrics["dice_lungs_with_heart_source_1"] == 1

    lines = list(csv.DictReader(io.StringIO(predictions)))
    assert [(x["source"], x["index"]) for x in lines] == [("0", "0"), ("0", "1"), *[("1", "0")],
                                                         ("1", "1")]  # fmt: skip
    assert lines[0]["dice"] == "0.666666667" and lines[3]["channel"] == "lungs_with_heart"
    assert np.mean([float(x["iou"]) for x in lines[:3]]) == pytest.approx(metrics["iou_lungs"])


def test_the_table_says_the_rule_and_the_counts():
    evaluator = Segmentation()
    assert isinstance(evaluator, Evaluator)
    text = evaluator.table(evaluator.evaluate({"val": lambda: ROWS})[0])
    assert "two empty contours count 1" in text and "(3 films)" in text
    assert "lungs_with_heart, source 1" in text


def test_no_films_make_no_mean():
    metrics, predictions = Segmentation().evaluate({"val": lambda: []})
    assert metrics == {"rows": 0} and predictions.count("\n") == 1


def test_a_page_has_a_row_a_film(tmp_path):
    page = tmp_path / "page.png"
    Segmentation().draw(ROWS, page, title="four films")
    assert Image.open(page).size[1] > 4 * 224
