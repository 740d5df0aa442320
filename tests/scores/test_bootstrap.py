"""Intervals against replicates that are written out film by film."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.scores.made import predictions
from xmae_jax.scores import bootstrap
from xmae_jax.scores.ranking import rank


def test_draws_are_fixed():
    counts = np.concatenate(list(bootstrap.draws(5, replicates=40)))
    assert counts.shape == (40, 5) and (counts.sum(axis=1) == 5).all()
    # What NumPy's Philox gives for the seed, by its raw output: no release may change it.
    assert counts[:3].tolist() == [[2, 1, 1, 0, 1], [3, 1, 0, 0, 1], [1, 0, 1, 1, 2]]
    longer = np.concatenate(list(bootstrap.draws(5, replicates=100)))
    np.testing.assert_array_equal(longer[:40], counts)
    # Each patient is drawn once a replicate on the average.
    many = np.concatenate(list(bootstrap.draws(50, replicates=1000)))
    assert abs(many.mean(axis=0) - 1).max() < 0.15 and abs(many.var() - 0.98) < 0.02


def test_replicates_against_scikit_learn_on_films_written_out():
    made = predictions(60, seed=3)
    patients = made.patients()
    people = int(patients.max()) + 1
    ranked, columns = [], []
    for c in range(2):
        known = made.known[:, c]
        columns.append((made.logits[known, c], made.labels[known, c] == 1, patients[known]))
        ranked.append(rank(*columns[-1]))
    drawn = bootstrap.replicate(ranked, patients=people, replicates=50)
    counts = np.concatenate(list(bootstrap.draws(people, replicates=50)))
    for c, (scores, labels, of) in enumerate(columns):
        for r in range(50):
            films = [i for p in range(people) for _ in range(counts[r, p])
                     for i in np.flatnonzero(of == p)]  # fmt: skip
            if len(set(labels[films])) < 2:
                assert np.isnan(drawn[c, :, r]).all()
                continue
            auroc = roc_auc_score(labels[films], scores[films])
            average = average_precision_score(labels[films], scores[films])
            assert drawn[c, 0, r] == pytest.approx(auroc, abs=1e-12)
            assert drawn[c, 1, r] == pytest.approx(average, abs=1e-12)


def test_films_of_one_patient_go_together():
    """Ten copies of each film, all of its patient, change no replicate of the AUROC."""
    draw = np.random.default_rng(0)
    labels = draw.random(40) < 0.5
    scores, patients = draw.normal(size=40) + labels, np.arange(40)
    one = bootstrap.replicate([rank(scores, labels, patients)], patients=40, replicates=60)
    tenfold = rank(*(np.repeat(x, 10) for x in (scores, labels, patients)))
    ten = bootstrap.replicate([tenfold], patients=40, replicates=60)
    np.testing.assert_allclose(one, ten, atol=1e-12)


def test_replicates_without_both_sides_are_left_out():
    labels = np.array([True, False, False, False])
    ranked = rank(np.array([2.0, 1, 0, -1]), labels, np.arange(4))
    drawn = bootstrap.replicate([ranked], patients=4)[0, 0]
    counts = np.concatenate(list(bootstrap.draws(4, replicates=bootstrap.REPLICATES)))
    lacking = (counts[:, 0] == 0) | (counts[:, 0] == 4)
    np.testing.assert_array_equal(np.isnan(drawn), lacking)
    assert 0 < lacking.sum() < 500 and bootstrap.interval(drawn) == [1.0, 1.0]
    assert bootstrap.interval(np.full(5, np.nan)) is None


def test_sums_of_replicates():
    patients = np.array([0, 0, 1, 2])
    values = np.array([[1.0, 0], [2, 1], [4, 1], [8, 1]])
    sums = bootstrap.resample_sums(values, patients, people=3, replicates=30)
    counts = np.concatenate(list(bootstrap.draws(3, replicates=30)))
    np.testing.assert_array_equal(sums[:, 0], counts @ [3, 4, 8])
    np.testing.assert_array_equal(sums[:, 1], counts @ [1, 1, 1])


def test_a_mean_is_over_what_a_replicate_has():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(bootstrap.mean_of_defined(values), [2.0, 5.0, np.nan])


def test_intervals_cover_what_they_say():
    """Of 200 samples of 60 films some 95 % of the intervals hold the true AUROC."""
    true = 0.5 * (1 + 0.5204998778130465)  # of N(1, 1) against N(0, 1): Phi(1 / sqrt(2))
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        labels = np.arange(60) < 30
        ranked = rank(draw.normal(size=60) + labels, labels, np.arange(60))
        drawn = bootstrap.replicate([ranked], patients=60, replicates=300)[0, 0]
        low, high = bootstrap.interval(drawn)
        hits += low <= true <= high
    assert 0.90 <= hits / 200 <= 0.99
