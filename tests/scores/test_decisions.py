"""Thresholds and what comes of them, against scikit-learn and all thresholds tried in turn."""

import numpy as np
import pytest
from sklearn import metrics

from xmae_jax.scores.decisions import best_threshold, outcomes, rates


def made(n, seed, levels=5):
    draw = np.random.default_rng(seed)
    labels = draw.random(n) < 0.3
    labels[:2] = True, False
    return np.round((draw.normal(size=n) + labels) * levels) / levels, labels


@pytest.mark.parametrize("levels", [1, 5, 1e6])
def test_the_threshold_has_the_greatest_f1(levels):
    for seed in range(8):
        scores, labels = made(40, seed, levels)
        f1 = {t: metrics.f1_score(labels, scores >= t) for t in np.unique(scores)}
        best = max(f1.values())
        highest = max(t for t, value in f1.items() if value > best - 1e-12)
        assert best_threshold(scores, labels) == highest


def test_one_side_has_no_threshold():
    assert best_threshold(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert best_threshold(np.array([1.0, 2.0]), np.array([False, False])) is None
    assert best_threshold(np.array([]), np.array([], bool)) is None


def test_rates_against_scikit_learn():
    scores, labels = made(80, 3)
    marks = outcomes(scores, labels, threshold=0.6)
    assert (marks.sum(axis=1) == 1).all()
    called, found = scores >= 0.6, rates(marks.sum(axis=0))
    wanted = {
        "sensitivity": metrics.recall_score(labels, called),
        "specificity": metrics.recall_score(~labels, ~called),
        "f1": metrics.f1_score(labels, called),
        "mcc": metrics.matthews_corrcoef(labels, called),
        "ppv": metrics.precision_score(labels, called),
        "npv": metrics.precision_score(~labels, ~called),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted)


def test_rates_over_nothing_are_undefined():
    found = rates(np.array([[0.0, 0, 3, 5], [0, 2, 0, 5], [0, 0, 0, 0]]))  # TP FP FN TN
    assert found["sensitivity"][0] == 0 and np.isnan(found["ppv"][0])
    assert np.isnan(found["sensitivity"][1]) and found["specificity"][1] == pytest.approx(5 / 7)
    assert np.isnan(found["mcc"]).all() and np.isnan(found["f1"][2])
