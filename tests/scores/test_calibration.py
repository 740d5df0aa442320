"""Brier, ECE and temperature against scikit-learn, loops and the known answer."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from xmae_jax.scores import calibration


def made(n=500, *, seed=0, scale=1.0):
    """Make films whose logits are right, but for a factor."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=n) * 2 - 1
    return logits * scale, draw.random(n) < expit(logits)


def test_quality_against_scikit_learn():
    logits, labels = made()
    found = calibration.quality(logits, labels)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, expit(logits)))
    assert found["log_loss"] == pytest.approx(log_loss(labels, expit(logits)))


def test_ece_by_loop():
    logits, labels = made(seed=1)
    p = expit(logits)
    p[:3] = 1.0, 0.0, 0.2  # 1.0 falls into the last bin, 3/15 into the fourth
    total, films = 0.0, calibration.reliability(p, labels).films
    for i in range(15):
        inside = (p >= i / 15) & ((p < (i + 1) / 15) | (i == 14))
        assert films[i] == inside.sum()
        if inside.any():
            total += inside.mean() * abs(p[inside].mean() - labels[inside].mean())
    assert calibration.expected_error(p, labels) == pytest.approx(total)


def test_ece_by_hand():
    p = np.array([1.0, 1.0, 0.02, 0.04])
    labels = np.array([True, False, False, False])
    found = calibration.reliability(p, labels)
    assert found.films.tolist() == [2] + [0] * 13 + [2]
    assert found.frequency[14] == 0.5 and np.isnan(found.probability[7])
    assert calibration.expected_error(p, labels) == pytest.approx(0.5 * 0.5 + 0.5 * 0.03)


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_a_factor(scale):
    logits, labels = made(20_000, scale=scale)
    warmth = calibration.temperature(logits, labels)
    assert warmth == pytest.approx(scale, rel=0.06)
    before, after = (calibration.quality(x, labels) for x in (logits, logits / warmth))
    assert after["log_loss"] <= before["log_loss"] and after["ece"] < 0.012
    for other in (0.99, 1.01):
        assert calibration.log_loss(logits / (warmth * other), labels) > after["log_loss"]


def test_a_temperature_has_bounds_and_needs_both_sides():
    labels = np.array([True, True, False, False])
    coldest = calibration.temperature(np.where(labels, 1.0, -1.0), labels)
    assert coldest == pytest.approx(calibration.COLDEST, rel=1e-3)
    assert calibration.temperature(np.ones(4), np.ones(4, bool)) is None
    assert calibration.temperature(np.ones(0), np.ones(0, bool)) is None


def test_scores_far_out_stay_finite():
    logits, labels = np.array([900.0, -900.0, 900.0]), np.array([True, False, False])
    found = calibration.quality(logits, labels)
    assert found["log_loss"] == pytest.approx(300) and found["brier"] == pytest.approx(1 / 3)
