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
    row(0, 1, 0, guess=0, truth=4),  # nothing found: 0
    row(1, 0, 0, guess=2, truth=0),  # nothing to outline: no part of the mean
    row(1, 2, 0, guess=0, truth=0),
    row(1, 1, 1, guess=4, truth=4),
]


def test_numbers_by_hand():
    metrics, predictions = Segmentation().evaluate({"val": lambda: ROWS})
    assert metrics["rows"] == 5
    assert metrics["films_lungs"] == 2 and metrics["films_lungs_with_heart"] == 1
    assert metrics["dice_lungs"] == pytest.approx(1 / 3)
    assert metrics["iou_lungs"] == pytest.approx(1 / 4)
    assert metrics["dice_lungs_source_0"] == pytest.approx(1 / 3)
    assert "dice_lungs_source_1" not in metrics
    assert metrics["nothing_there_lungs"] == 2 and metrics["left_empty_lungs"] == 1
    assert metrics["dice_lungs_with_heart_source_1"] == 1

    lines = list(csv.DictReader(io.StringIO(predictions)))
    assert [(x["source"], x["index"]) for x in lines] == [
        tuple(str(i) for i in x["id"]) for x in ROWS
    ]
    assert lines[0]["dice"] == "0.666666667" and lines[4]["channel"] == "lungs_with_heart"
    scored = [float(x["iou"]) for x in lines[:4] if x["empty"] == "0"]
    assert np.mean(scored) == pytest.approx(metrics["iou_lungs"])


def test_the_table_says_the_counts():
    evaluator = Segmentation()
    assert isinstance(evaluator, Evaluator)
    text = evaluator.table(evaluator.evaluate({"val": lambda: ROWS})[0])
    assert "nothing to outline: 1 of 2 left empty" in text and "(2 films)" in text
    assert "lungs_with_heart, source 1" in text


def test_no_films_make_no_mean():
    metrics, predictions = Segmentation().evaluate({"val": lambda: []})
    assert metrics == {"rows": 0} and predictions.count("\n") == 1


def test_a_page_has_a_row_a_film(tmp_path):
    page = tmp_path / "page.png"
    Segmentation().draw(ROWS, page, title="four films")
    assert Image.open(page).size[1] > 4 * 224
