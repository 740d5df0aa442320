"""DeLong's variance and test against placement values by brute force, and a resampled one."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from xmae_jax.scores import delong


def brute_force(scores, labels):
    """Compare each film that has the finding with each that has not, as the paper of 1988 does."""
    aurocs, v10, v01 = [], [], []
    for one in scores:
        x, y = one[labels], one[~labels]
        psi = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
        aurocs.append(psi.mean())
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    m, n = labels.sum(), (~labels).sum()
    covariance = np.empty((len(scores),) * 2)
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = ((v10[r] - aurocs[r]) * (v10[s] - aurocs[s])).sum() / (m - 1)
            s01 = ((v01[r] - aurocs[r]) * (v01[s] - aurocs[s])).sum() / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return np.array(aurocs), covariance


def made(n, *, models=3, levels=4, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.random(n) < 0.4
    scores = draw.normal(size=(models, n)) + labels * np.arange(models)[:, None]
    return np.round(scores * levels) / levels, labels


@pytest.mark.parametrize("levels", [1, 4, 1e9])
def test_covariance_by_brute_force(levels):
    for seed in range(5):
        scores, labels = made(50, levels=levels, seed=seed)
        aurocs, covariance = delong.covariance(scores, labels)
        np.testing.assert_allclose(aurocs, [roc_auc_score(labels, s) for s in scores], atol=1e-12)
        wanted = brute_force(scores, labels)
        np.testing.assert_allclose(aurocs, wanted[0], atol=1e-12)
        np.testing.assert_allclose(covariance, wanted[1], atol=1e-12)


def test_by_hand():
    """Scores 3, 1 with the finding and 2, 0 without: placements 1, 1/2 and 1/2, 1."""
    scores = np.array([[3.0, 1.0, 2.0, 0.0]])
    aurocs, covariance = delong.covariance(scores, np.array([True, True, False, False]))
    assert aurocs[0] == 0.75
    assert covariance[0, 0] == pytest.approx(0.125 / 2 + 0.125 / 2)


def test_a_published_example():
    """CT ratings of Hanley and McNeil 1982, table I; Stata's manual has area, error and interval.

    https://doi.org/10.1148/radiology.143.1.7063747; [R] roctab.
    """
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat([1.0, 2, 3, 4, 5] * 2, normal + abnormal)
    (auroc,), ((variance,),) = delong.covariance(ratings[None], np.arange(109) >= 58)
    assert round(auroc, 4) == 0.8932 and round(variance**0.5, 4) == 0.0307
    assert np.round(delong.interval(auroc, variance), 5).tolist() == [0.83295, 0.95339]


def test_p_value_and_interval():
    scores, labels = made(60, levels=1e9)
    aurocs, covariance = brute_force(scores[:2], labels)
    z = (aurocs[0] - aurocs[1]) / np.sqrt(
        covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    )
    p = delong.p_value(*delong.covariance(scores[:2], labels))
    assert p == pytest.approx(2 * norm.cdf(-abs(z)))
    low, high = delong.interval(0.9, 0.0025)
    assert low == pytest.approx(0.9 - 1.959963984540054 * 0.05, abs=1e-9) and high < 1
    assert delong.interval(0.99, 0.01)[1] == 1.0


def test_scores_that_rank_alike_have_no_p():
    scores, labels = made(40, models=1)
    both = np.concatenate([scores, 3 * scores + 1])
    assert delong.p_value(*delong.covariance(both, labels)) is None
    perfect = np.stack([labels * 1.0, labels * 2.0])
    assert delong.p_value(*delong.covariance(perfect, labels)) is None


def test_p_values_are_even_where_there_is_no_difference():
    """Of 400 pairs of equally good models some 5 % have p < 0.05."""
    draw = np.random.default_rng(0)
    labels = np.arange(120) < 60
    below = 0
    for _ in range(400):
        scores = draw.normal(size=(2, 120)) + labels
        below += delong.p_value(*delong.covariance(scores, labels)) < 0.05
    assert 8 <= below <= 34
