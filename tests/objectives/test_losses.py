"""Losses by hand in float64; what is unknown has no value and no gradient, whatever it holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmae_jax.config import ConfigError, build
from xmae_jax.objectives.losses import (
    Asymmetric,
    Bce,
    ClassBalanced,
    ClassStats,
    Focal,
    LogitAdjusted,
    LossConfig,
    WeightedBce,
    loss,
    stats_of,
    targets,
)

BCE = Bce("bce")
RATIO, EXPONENTIAL = (WeightedBce("weighted_bce", w) for w in ("ratio", "exponential"))
FOCAL = Focal("focal", 2.0)
ASYMMETRIC = Asymmetric("asymmetric", 4.0, 1.0, 0.05)
BALANCED = ClassBalanced("class_balanced", 0.99)
ADJUSTED = LogitAdjusted("logit_adjusted", 1.0)
ALL = [
    BCE,
    RATIO,
    EXPONENTIAL,
    FOCAL,
    Focal("focal", 0.5),
    ASYMMETRIC,
    Asymmetric("asymmetric", 4.0, 1.0, 0.0),
    Asymmetric("asymmetric", 0.5, 0.0, 0.05),
    Asymmetric("asymmetric", 2.0, 1.0, 1e-9),
    BALANCED,
    ClassBalanced("class_balanced", 0.0),
    ADJUSTED,
]
# 100 of 400 known are positive; one of 1,000; every one; nothing is known.
STATS = ClassStats(jnp.array([100.0, 1.0, 50.0, 0.0]), jnp.array([400.0, 1000.0, 50.0, 0.0]))


def values(config, logits, labels, known=None, stats=STATS):
    logits, labels = (jnp.asarray(x, jnp.float32) for x in (logits, labels))
    known = jnp.ones(logits.shape, bool) if known is None else jnp.asarray(known)
    return loss(config, logits=logits, labels=labels, known=known, class_stats=stats)


def one(config, logit, label, *, finding=0):
    """Return the loss of one logit of one finding."""
    return float(values(config, np.full((1, 4), logit), np.full((1, 4), label))[0, finding])


# At logit log 3 the probability is 3/4.
L3 = math.log(3)
RATE_100, RATE_300 = 1 - 0.99**100, 1 - 0.99**300


@pytest.mark.parametrize(
    ("config", "positive", "negative"),
    [
        (BCE, -math.log(3 / 4), -math.log(1 / 4)),
        (RATIO, -3 * math.log(3 / 4), -math.log(1 / 4)),  # 300 / 100
        (EXPONENTIAL, -math.exp(0.75) * math.log(3 / 4), -math.exp(0.25) * math.log(1 / 4)),
        (FOCAL, -((1 / 4) ** 2) * math.log(3 / 4), -((3 / 4) ** 2) * math.log(1 / 4)),
        (ASYMMETRIC, -(1 / 4) * math.log(3 / 4), -(0.7**4) * math.log(0.3)),
        (
            BALANCED,
            -2 * RATE_300 / (RATE_100 + RATE_300) * math.log(3 / 4),
            -2 * RATE_100 / (RATE_100 + RATE_300) * math.log(1 / 4),
        ),
        # log(100 / 300) takes the logit to 0.
        (ADJUSTED, math.log(2), math.log(2)),
    ],
)
def test_by_hand(config, positive, negative):
    assert one(config, L3, 1.0) == pytest.approx(positive, rel=1e-5)
    assert one(config, L3, 0.0) == pytest.approx(negative, rel=1e-5)
    assert one(config, L3, 0.7) == pytest.approx(0.7 * positive + 0.3 * negative, rel=1e-5)


def test_a_weight_stays_within_bounds_where_a_class_is_rare_or_absent():
    assert one(RATIO, 0.0, 1.0, finding=1) == pytest.approx(10 * math.log(2))
    assert one(RATIO, 0.0, 1.0, finding=2) == pytest.approx(0.1 * math.log(2))
    assert one(ADJUSTED, 0.0, 1.0, finding=1) == pytest.approx(math.log(1 + 999), rel=1e-5)
    # 1,000 and 1: (1 - beta^n) / (1 - beta) is 1 for one example.
    many = 1 - 0.99**999
    want = 2 * 0.01 / (0.01 + many) * math.log(2)
    assert one(BALANCED, 0.0, 0.0, finding=1) == pytest.approx(want, rel=1e-5)
    assert one(ClassBalanced("class_balanced", 0.0), L3, 1.0) == pytest.approx(-math.log(0.75))
    for config in ALL:
        assert np.all(np.isfinite(values(config, np.zeros((1, 4)), np.ones((1, 4)))))


def test_effective_numbers_keep_their_digits_near_beta_1():
    beta, counts = 0.999999, (3.0, 7.0)
    stats = ClassStats(jnp.array([counts[0]]), jnp.array([sum(counts)]))
    got = values(ClassBalanced("class_balanced", beta), [[0.0]], [[1.0]], stats=stats)
    a, b = (-math.expm1(n * math.log(beta)) for n in counts)
    assert float(got[0, 0]) == pytest.approx(2 * b / (a + b) * math.log(2), rel=1e-5)


def test_a_negative_below_the_clip_is_free():
    logit = math.log(0.04 / 0.96)  # p = 0.04
    assert one(ASYMMETRIC, logit, 0.0) == 0.0
    slope = jax.grad(lambda z: values(ASYMMETRIC, z, jnp.zeros((1, 4))).sum())
    assert not np.any(slope(jnp.full((1, 4), logit)))


@pytest.mark.parametrize("config", ALL, ids=str)
def test_large_logits(config):
    # A sure and wrong answer costs about its logit (unless clipped), a sure and right one nothing.
    z = jnp.array([[100.0], [-100.0], [100.0], [-100.0], [0.0], [0.0]])
    y = jnp.array([[1.0], [0.0], [0.0], [1.0], [0.0], [1.0]])
    stats = ClassStats(jnp.array([50.0]), jnp.array([100.0]))

    def total(z):
        each = values(config, z, y, stats=stats)
        return each.sum(), each

    slope, each = jax.grad(total, has_aux=True)(z)
    assert np.all(np.isfinite(each)) and np.all(np.isfinite(slope)) and np.all(each >= 0)
    np.testing.assert_allclose(each[:2], 0.0, atol=1e-30)
    weight = math.exp(0.5) if config == EXPONENTIAL else 1.0
    clipped = isinstance(config, Asymmetric) and config.clip > 0
    missed = (
        -math.log(config.clip) * (1 - config.clip) ** config.gamma_negative if clipped else 100.0
    )
    wrong = [missed, 100.0]
    np.testing.assert_allclose(each[2:4, 0], np.array(wrong) * weight, rtol=1e-5)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_slopes_are_those_of_the_values(config):
    z = np.linspace(-6, 6, 25, dtype=np.float32)[:, None] + 0.013
    y = np.where(np.arange(25) % 2, 1.0, 0.0)[:, None]
    stats = ClassStats(jnp.array([30.0]), jnp.array([100.0]))
    slope = jax.grad(lambda z: values(config, z, y, stats=stats).sum())(jnp.asarray(z))
    step = 2**-6
    up, down = (values(config, z + s, y, stats=stats) for s in (step, -step))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_unknown_has_no_value_and_no_gradient(config):
    draw = np.random.default_rng(0)
    z, y = draw.normal(size=(6, 4)), draw.integers(0, 2, (6, 4)).astype(float)
    known = np.array(
        [[1, 1, 0, 1], [0] * 4, [1, 0, 1, 1], [0, 1, 1, 0], [1] * 4, [0, 0, 0, 1]], bool
    )
    bad = np.resize([np.nan, np.inf, -np.inf, 1e30], (6, 4))
    clean = values(config, z, y, known)
    np.testing.assert_array_equal(np.asarray(clean)[~known], 0.0)
    assert np.all(np.asarray(clean)[known] >= 0)

    def total(z, y):
        return values(config, z, y, known).sum()

    z_bad, y_bad = np.where(known, z, bad), np.where(known, y, bad[::-1])
    np.testing.assert_array_equal(values(config, z_bad, y_bad, known), clean)
    of_z, of_y = jax.grad(total, argnums=(0, 1))(*(jnp.asarray(x) for x in (z_bad, y_bad)))
    for gradient in (of_z, of_y):
        np.testing.assert_array_equal(np.asarray(gradient)[~known], 0.0)
        assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(of_z, jax.grad(total)(jnp.asarray(z), jnp.asarray(y)))


@pytest.mark.parametrize("config", ALL, ids=str)
def test_bfloat16_logits_are_computed_in_float32(config):
    z = jnp.asarray([[1.5, -2.25, 0.5, 3.0]])
    y = jnp.ones((1, 4))
    known = jnp.ones((1, 4), bool)
    got = loss(config, logits=z.astype(jnp.bfloat16), labels=y, known=known, class_stats=STATS)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, values(config, z, y))


@pytest.mark.parametrize(
    ("policy", "label", "counts"),
    [("ignore", 0.0, False), ("zeros", 0.0, True), ("ones", 1.0, True), ("smoothed", 0.7, True)],
)
def test_uncertain(policy, label, counts):
    given = jnp.array([[1.0, 0.0, -1.0, jnp.nan]])
    labels, known = targets(given, uncertain=policy)
    np.testing.assert_allclose(labels, [[1.0, 0.0, label, 0.0]])
    np.testing.assert_array_equal(known, [[True, True, counts, False]])
    assert labels.dtype == jnp.float32


@dataclasses.dataclass(frozen=True)
class Holder:
    criterion: LossConfig


def test_a_config_names_a_loss_by_its_kind():
    assert build(Holder, {"criterion": {"kind": "focal", "gamma": 2.0}}).criterion == FOCAL
    asymmetric = dict(kind="asymmetric", gamma_negative=4.0, gamma_positive=1.0, clip=0.05)
    assert build(Holder, {"criterion": asymmetric}).criterion == ASYMMETRIC
    for tree, told in (
        ({"kind": "dice"}, "'bce', 'weighted_bce', 'focal'"),
        ({"kind": "focal", "gamma": -1.0}, "gamma must not be negative"),
        ({"kind": "class_balanced", "beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"kind": "logit_adjusted", "tau": 0.0}, "tau must be positive"),
        ({**asymmetric, "clip": 1.0}, r"clip must lie in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(Holder, {"criterion": tree})


@pytest.mark.parametrize(
    "uncertain, positive, known",
    [("ignore", 1, 3), ("zeros", 1, 6), ("ones", 4, 6), ("smoothed", 3.1, 6)],
)
def test_classes_are_counted_as_training_reads_them(uncertain, positive, known):
    """One present, two absent, three uncertain."""
    one = jnp.ones(1)
    stats = stats_of(one, 3 * one, 3 * one, uncertain=uncertain)
    np.testing.assert_allclose([stats.positive[0], stats.known[0]], [positive, known], rtol=1e-6)
    labels = jnp.array([[1.0], [0.0], [0.0], [-1.0], [-1.0], [-1.0], [jnp.nan]])
    read, certain = targets(labels, uncertain=uncertain)
    np.testing.assert_allclose([read.sum(), certain.sum()], [positive, known], rtol=1e-6)
