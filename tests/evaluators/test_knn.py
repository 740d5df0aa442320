"""Nearest neighbours against brute force, and what they vote."""

import numpy as np
import pytest

from xmae_jax.evaluators import knn


@pytest.mark.parametrize(("queries", "references", "k"), [(5, 7, 3), (9, 4, 4), (1, 1, 1)])
def test_nearest_is_brute_force(monkeypatch, queries, references, k):
    monkeypatch.setattr(knn, "_QUERIES", 4)
    monkeypatch.setattr(knn, "_REFERENCES", 3)
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(queries, 6)) * 9, draw.normal(size=(references, 6))
    cosine, index = knn.nearest(a, b, k=k)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    all_of_them = unit[0] @ unit[1].T
    want = np.argsort(-all_of_them, axis=1)[:, :k]
    np.testing.assert_array_equal(index, want)
    np.testing.assert_allclose(cosine, np.take_along_axis(all_of_them, want, 1), atol=1e-6)


def test_ties_go_by_index_and_zeros_are_no_trouble(monkeypatch):
    monkeypatch.setattr(knn, "_REFERENCES", 2)
    same = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(knn.nearest(same[:1], same, k=4)[1], [[0, 1, 2, 3]])
    cosine, index = knn.nearest(np.zeros((1, 3), np.float32), -same, k=5)
    np.testing.assert_array_equal(index, [[0, 1, 2, 3, 4]])
    assert not cosine.any()
    with pytest.raises(ValueError, match="k is 6, and there are 5 references"):
        knn.nearest(same, same, k=6)


def test_only_known_neighbours_vote():
    cosine = np.array([[0.9, 0.83, 0.76]], np.float32)
    w = np.exp(np.array([0.9, 0.83, 0.76]) / 0.07)
    nan = np.nan
    labels = np.array([[[1, 0, nan, nan], [0, -1, 1, nan], [1, 1, 0, -1]]], np.float32)
    score = knn.vote(cosine, labels)
    want = [(w[0] + w[2]) / w.sum(), w[2] / (w[0] + w[2]), w[1] / (w[1] + w[2]), nan]
    np.testing.assert_allclose(score, [want], rtol=1e-5)


def test_scores_of_every_k(monkeypatch):
    monkeypatch.setattr(knn, "_VOTES", 2)
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(5, 4)), draw.normal(size=(9, 4))
    labels = draw.choice(np.array([0, 1, -1, np.nan], np.float32), size=(9, 2))
    labels[:, 1] = np.nan
    labels[0, 1] = 1
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    for k, logits, silent in knn.scores(a, b, labels, ks=(1, 3, 9)):
        want, voteless = np.zeros((5, 2)), 0
        for q in range(5):
            near = np.argsort(-cosine[q])[:k]
            for c in range(2):
                of = [i for i in near if labels[i, c] in (0, 1)]
                weights = np.exp(cosine[q, of] / 0.07)
                if of:
                    want[q, c] = (weights * labels[of, c]).sum() / weights.sum()
                else:
                    column = labels[:, c]
                    want[q, c] = (column == 1).sum() / np.isin(column, (0, 1)).sum()
                    voteless += 1
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), want, rtol=1e-4, atol=1e-11)
        assert silent == voteless and np.isfinite(logits).all()
    assert silent == 0  # all nine vote


def test_a_finding_of_which_nothing_is_known_scores_a_half():
    labels = np.full((3, 1), np.nan, np.float32)
    ((_, logits, silent),) = knn.scores(np.eye(3), np.eye(3), labels, ks=(2,))
    assert not logits.any() and silent == 3
