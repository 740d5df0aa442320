"""Rows of scores to predictions.csv and back: the same numbers, each film once."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from xmae_jax.data.index import Entry
from xmae_jax.evaluators.classification import Classification
from xmae_jax.scores.predictions import PredictionsError, from_csv
from xmae_jax.scores.summary import summarise
from xmae_jax.typing import Evaluator

TRAIN = np.array([2000, 150, 3])
FINDINGS = ("Edema", "Mass", "Hernia")


def entry(index, split):
    """Make what the evaluator reads of a line of the index: three films a patient."""
    made = dict(
        id=f"{split}{index}",
        patient=f"{split}p{index // 3}",
        study=f"s{index // 2}",
        view=("PA", "AP", "")[index % 3],
        source="made",
        sex=("F", "M", "")[index % 3],
        age=float("nan") if index % 5 == 0 else float(index % 95),
    )
    return Entry(**dict.fromkeys(Entry._fields, "") | made)


def row(index, *, seed=0):
    draw = np.random.default_rng((seed, index))
    labels = draw.choice([0, 1, 1, -1, np.nan], size=3).astype(np.float32)
    labels[2] = 0
    return {
        "id": np.array([0, index], np.int32),
        "image": draw.integers(0, 256, (32, 32, 1), dtype=np.uint8),
        "logits": (draw.normal(size=3) + np.nan_to_num(labels)).astype(np.float32),
        "labels": labels,
    }


def evaluator(films=60):
    entries = {split: [[entry(i, split) for i in range(films)]] for split in ("val", "test")}
    return Classification(FINDINGS, entries, train_positive=TRAIN)


def splits(films=60):
    return {
        "train": lambda: pytest.fail("training films are not scored"),
        "val": lambda: (row(i, seed=1) for i in range(films)),
        "test": lambda: (row(i) for i in range(films)),
    }


def test_numbers_against_scikit_learn_and_again_from_the_file():
    one = evaluator()
    assert isinstance(one, Evaluator)
    metrics, text = one.evaluate(splits())
    rows = [row(i) for i in range(60)]
    assert metrics["split"] == "test" and metrics["films"] == 60 and metrics["patients"] == 20
    for c, name in enumerate(FINDINGS[:2]):
        known = [r for r in rows if r["labels"][c] in (0, 1)]
        labels, logits = ([r[key][c] for r in known] for key in ("labels", "logits"))
        found = metrics["findings"][name]
        assert found["n_positive"] == sum(labels)
        assert found["n_positive"] + found["n_negative"] == len(known)
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
        average = average_precision_score(labels, logits)
        assert found["average_precision"] == pytest.approx(average, abs=1e-12)
        low, high = found["auroc_interval"]
        assert low < found["auroc"] < high
    hernia = metrics["findings"]["Hernia"]
    assert hernia["n_positive"] == 0 and hernia["auroc"] is None
    assert hernia["average_precision"] is None and hernia["auroc_interval"] is None
    mean = np.mean([metrics["findings"][name]["auroc"] for name in FINDINGS[:2]])
    assert metrics["macro"]["auroc"] == pytest.approx(mean)
    assert metrics["macro"]["findings"] == 2 and metrics["macro"]["left_out"] == ["Hernia"]

    shown = one.table(metrics)
    assert "Hernia" in shown and "undefined" in shown and "mean of 2 findings" in shown
    fewer = {**metrics, "macro": {**metrics["macro"], "findings": 1}}
    assert "mean of 1 finding " in one.table(fewer)
    assert summarise(from_csv(text, name="file"), "test", train_positive=TRAIN) == metrics


def test_the_file_holds_every_film_once_and_every_bit():
    _, text = evaluator().evaluate(splits())
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(x["split"], int(x["index"])) for x in lines] == [
        (split, i) for split in ("val", "test") for i in range(60)
    ]
    told = {0: "0", 1: "1", -1: "u"}
    for i, line in enumerate(lines[60:]):
        for c, name in enumerate(FINDINGS):
            assert np.float32(line[f"logit:{name}"]) == row(i)["logits"][c]
            assert line[f"label:{name}"] == told.get(row(i)["labels"][c], "")
    assert lines[0]["age"] == "" and lines[1]["age"] == "1" and lines[61]["sex"] == "M"


def test_a_score_that_is_no_number_is_named():
    def rows():
        bad = row(0)
        bad["logits"][1] = np.nan
        return [bad]

    with pytest.raises(PredictionsError, match="line 2, logit:Mass"):
        evaluator().evaluate({"val": rows})


def test_a_page_has_a_row_a_film(tmp_path):
    page = tmp_path / "page.png"
    evaluator().draw([row(i) for i in range(3)], page, title="three films")
    assert Image.open(page).size[1] > 3 * 224
