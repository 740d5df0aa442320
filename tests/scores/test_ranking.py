"""AUROC and average precision against scikit-learn: ties, weights, one side."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from xmae_jax.scores.ranking import point, rank, scores_of


def made(n, *, levels, seed):
    draw = np.random.default_rng(seed)
    labels = draw.random(n) < 0.3
    labels[:2] = True, False
    scores = draw.normal(size=n) + labels
    return np.round(scores * levels) / levels, labels


@pytest.mark.parametrize("levels", [1, 3, 1e6])
@pytest.mark.parametrize("n", [2, 7, 400])
def test_scores_against_scikit_learn(n, levels):
    for seed in range(5):
        scores, labels = made(n, levels=levels, seed=seed)
        auroc, average = point(rank(scores, labels))
        assert auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert average == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_all_scores_equal():
    labels = np.array([True, False, False, True, False])
    auroc, average = point(rank(np.zeros(5), labels))
    assert auroc == 0.5 and average == pytest.approx(0.4)


def test_films_that_count_several_times_or_not_at_all():
    scores, labels = made(60, levels=3, seed=9)
    ranked = rank(scores, labels)
    counts = np.random.default_rng(1).poisson(1.0, size=(40, 60))
    aurocs, averages = scores_of(ranked, np.take(counts, ranked.patients, axis=1))
    for r, count in enumerate(counts):
        again = np.repeat(scores, count), np.repeat(labels, count)
        assert aurocs[r] == pytest.approx(roc_auc_score(again[1], again[0]), abs=1e-12)
        assert averages[r] == pytest.approx(average_precision_score(again[1], again[0]), abs=1e-12)


@pytest.mark.parametrize("labels", [[], [True], [False, False], [True, True]])
def test_one_side_alone_is_undefined(labels):
    labels = np.array(labels, bool)
    ranked = rank(np.arange(len(labels), dtype=np.float64), labels)
    assert point(ranked) == (None, None)
    both = rank(np.array([0.3, 0.7]), np.array([True, False]))
    (auroc, lacking), (average, _) = scores_of(both, np.array([[1, 2], [0, 3]]))
    assert auroc == 0 and np.isnan(lacking) and average == pytest.approx(2 / 3)
