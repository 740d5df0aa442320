"""Segmentation: what is known trains, what is not does not, and sums make the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmae_jax import metrics, rng, sharding
from xmae_jax.data import lungs
from xmae_jax.models.unet import UNetConfig
from xmae_jax.objectives import segment
from xmae_jax.objectives.segment import Segment
from xmae_jax.optim import OptimConfig, Optimizer
from xmae_jax.step import gradient, init_state
from xmae_jax.typing import Objective

KEY = rng.key(0, "train")
STEP = jnp.zeros((), jnp.int32)
TERMS = {f"{term}_{c}" for term in ("bce", "dice") for c in segment.CHANNELS}


def small_segment(**changes) -> Segment:
    fields = dict(
        image_size=16,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        unet=UNetConfig(2, (8, 8)),
        ema_decay=None,
    )
    return Segment(**(fields | changes))


def batch_of(rows=8):
    """Make films of which even rows know the first channel, odd ones half of the second."""
    draw = np.random.default_rng(0)
    truth = np.zeros((rows, 16, 16, 2), np.uint8)
    truth[:, 4:12, 3:13] = 1
    known = np.zeros_like(truth)
    known[::2, :, :, 0] = 1
    known[1::2, :, :8, 1] = 1
    return {
        "image": jnp.asarray(draw.integers(0, 256, (rows, 16, 16, 1), np.uint8)),
        "truth": jnp.asarray(truth),
        "known": jnp.asarray(known),
        "mask": jnp.ones(rows, bool),
        "id": jnp.zeros((rows, 2), jnp.int32),
    }


@pytest.fixture(scope="module")
def made():
    objective = small_segment()
    return objective, jax.jit(objective.init)(rng.key(0, "init"))


def losses(objective, params, batch):
    prepared = objective.prepare(batch, KEY, STEP)
    return prepared.weights, objective.loss(params, {}, {}, prepared.batch, KEY, STEP)


def test_channels_are_those_of_the_data():
    assert segment.CHANNELS == lungs.CHANNELS
    assert isinstance(small_segment(), Objective)


def test_terms_by_hand(made):
    objective, params = made
    batch = batch_of()
    weights, out = losses(objective, params, batch)
    assert set(weights) == set(out.totals) == TERMS
    p = 1 / (1 + np.exp(-np.asarray(objective.logits(params, batch["image"]), np.float64)))
    t, expected = np.asarray(batch["truth"], np.float64), dict.fromkeys(TERMS, 0.0)
    for row in range(8):
        c = row % 2
        q, s = p[row, :, : (8 if c else 16), c], t[row, :, : (8 if c else 16), c]
        name = segment.CHANNELS[c]
        expected[f"bce_{name}"] -= (s * np.log(q) + (1 - s) * np.log(1 - q)).mean()
        expected[f"dice_{name}"] += 1 - 2 * (q * s).sum() / (q + s).sum()
    for name in TERMS:
        assert weights[name] == 4
        np.testing.assert_allclose(out.totals[name], expected[name], rtol=1e-4)


def test_unknown_pixels_and_padding_rows_do_not_matter(made):
    objective, params = made
    batch = batch_of()
    changed = {**batch, "truth": jnp.where(batch["known"] > 0, batch["truth"], 1)}
    changed["mask"] = batch["mask"].at[6:].set(False)
    other = {**changed, "image": batch["image"].at[6:].set(0)}
    weights, out = losses(objective, params, changed)
    assert all(weight == 3 for weight in weights.values())
    first = {name: value[:6] for name, value in batch.items()}
    want = losses(objective, params, first)[1].totals
    for totals in (out.totals, losses(objective, params, other)[1].totals):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), totals, want)


def state_and_gradient(objective, batch, micro_batches):
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 1.0, (), None, ())
    state = init_state(objective, Optimizer(config, 8, 0, 1), rng.key(0, "init"))
    return jax.jit(lambda s, b: gradient(objective, s, b, KEY, micro_batches))(state, batch)


def test_micro_batches_give_one_gradient():
    one, four = (state_and_gradient(small_segment(), batch_of(), n) for n in (1, 4))
    np.testing.assert_allclose(one[2], four[2], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one[0], four[0]
    )


def test_eight_devices_give_one_gradient():
    one = state_and_gradient(small_segment(ema_decay=0.9), batch_of(), 1)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch_of(), sharding.batch_sharding(mesh))
        eight = state_and_gradient(small_segment(ema_decay=0.9), rows, 1)
    np.testing.assert_allclose(one[2], eight[2], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one[0], eight[0]
    )


def test_rules_cover_the_whole_state():
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 1.0, (), None, ())
    objective = small_segment(ema_decay=0.9)
    state = jax.eval_shape(
        lambda key: init_state(objective, Optimizer(config, 8, 0, 1), key), rng.key(0, "init")
    )
    laid = sharding.state_shardings(state, sharding.make_mesh(data=4, fsdp=2))
    assert all(where.is_fully_replicated for where in jax.tree.leaves(laid.params))


def test_an_empty_truth_has_no_dice_and_nothing_known_no_loss(made):
    objective, params = made
    batch = batch_of()
    weights, out = losses(objective, params, {**batch, "truth": jnp.zeros_like(batch["truth"])})
    for name in TERMS:
        assert (weights[name] > 0) == (out.totals[name] > 0) == name.startswith("bce")

    grads, out, loss = state_and_gradient(
        objective, {**batch, "known": jnp.zeros_like(batch["known"])}, 1
    )
    assert loss == 0 and all(value == 0 for value in out.totals.values())
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))
    assert set(metrics.values(out.metrics).values()) == {None}


def test_predictions_use_the_average(made):
    objective, params = made
    averaged = dataclasses.replace(objective, ema_decay=0.5)
    other = jax.tree.map(lambda p: p + 0.1, params)
    batch = batch_of()
    a = averaged.segment(other, {}, averaged.start(params), batch, KEY)["probability"]
    b = objective.segment(params, {}, {}, batch, KEY)["probability"]
    np.testing.assert_array_equal(a, b)
    moved = averaged.after_update(other, averaged.start(params), jnp.asarray(1000))["ema"]
    jax.tree.map(lambda m, p: np.testing.assert_allclose(m, p + 0.05, atol=1e-5), moved, params)
    assert objective.start(params) == {} and objective.after_update(params, {}, STEP) == {}


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size 18 is no multiple of 4"):
        small_segment(image_size=18)
    with pytest.raises(ValueError, match="ema_decay"):
        small_segment(ema_decay=1.0)
