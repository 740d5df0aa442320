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
