"""Disease recognition: what is unknown trains nothing, and sums make the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_encoder
from xmae_jax import rng, sharding
from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.records import encode_image
from xmae_jax.data.views import LabelledView
from xmae_jax.heads.linear import LinearConfig
from xmae_jax.objectives.losses import Bce
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import OptimConfig, Optimizer
from xmae_jax.step import gradient, init_state
from xmae_jax.typing import Objective

KEY = rng.key(0, "train")
STEP = jnp.zeros((), jnp.int32)


def small(**changes) -> Supervised:
    fields = dict(
        image_size=16,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        encoder=small_encoder(width=8, base_grid=4),
        head=LinearConfig(kind="linear", pool="mean", layers=2),
        findings=("Edema", "Nodule", "Mass"),
        criterion=Bce(kind="bce"),
        uncertain="ignore",
        drop_path=0.0,
        ema_decay=None,
    )
    return Supervised(**(fields | changes))


def batch_of(rows=8):
    draw = np.random.default_rng(0)
    labels = draw.choice([0.0, 1.0, -1.0, np.nan], (rows, 3), p=[0.4, 0.3, 0.1, 0.2])
    return {
        "image": jnp.asarray(draw.integers(0, 256, (rows, 16, 16, 1), np.uint8)),
        "valid": jnp.asarray(draw.uniform(size=(rows, 16)) < 0.8),
        "labels": jnp.asarray(labels, jnp.float32),
        "mask": jnp.ones(rows, bool),
        "id": jnp.zeros((rows, 2), jnp.int32),
    }


def state_and_gradient(objective, batch, micro_batches=1):
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 1.0, (), None, ())
    state = init_state(objective, Optimizer(config, 8, 0, 1), rng.key(0, "init"))
    return jax.jit(lambda s, b: gradient(objective, s, b, KEY, micro_batches))(state, batch)


def close(a, b, **how):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, **how), a, b)


@pytest.fixture(scope="module")
def whole():
    return state_and_gradient(small(drop_path=0.5), batch_of())


def test_the_loss_is_the_mean_over_what_is_known():
    objective, batch = small(), batch_of()
    assert isinstance(objective, Objective)
    _, out, loss = state_and_gradient(objective, batch)
    params = objective.init(rng.key(0, "init"))
    z = np.asarray(objective.classify(params, {}, {}, batch, KEY)["logits"], np.float64)
    y = np.asarray(batch["labels"], np.float64)
    known = y >= 0
    error = np.log1p(np.exp(-np.where(y == 1, z, -z)))
    np.testing.assert_allclose(loss, error[known].mean(), rtol=1e-5)
    right = (z > 0) == (y == 1)
    np.testing.assert_allclose(out.metrics["accuracy"].total, right[known].sum())


def test_a_row_with_nothing_known_changes_nothing():
    batch = batch_of()
    labels = batch["labels"].at[6:].set(jnp.nan)
    first = {name: value[:6] for name, value in batch.items()}
    other = batch["image"].at[6:].set(7)
    a = state_and_gradient(small(), {**batch, "labels": labels})
    b = state_and_gradient(small(), {**batch, "labels": labels, "image": other})
    close((a[0], a[2]), (b[0], b[2]))
    alone = state_and_gradient(small(), first)
    close((a[0], a[2]), (alone[0], alone[2]))
    nothing = state_and_gradient(small(), {**batch, "labels": jnp.full((8, 3), jnp.nan)})
    assert nothing[2] == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(nothing[0]))
    padded = {**batch, "mask": jnp.arange(8) < 6, "image": other}
    close(state_and_gradient(small(), padded)[0], a[0])


def test_micro_batches_and_devices_give_one_gradient(whole):
    objective, batch = small(drop_path=0.5), batch_of()
    four = state_and_gradient(objective, batch, 4)
    close((whole[0], whole[2]), (four[0], four[2]))
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, sharding.batch_sharding(mesh))
        eight = state_and_gradient(objective, rows)
    close((whole[0], whole[2]), (eight[0], eight[2]))


def test_stochastic_depth_leaves_out_branches_and_keeps_the_mean():
    objective, batch = small(drop_path=0.5), batch_of(4)
    many = {name: jnp.concatenate([value] * 64) for name, value in batch.items()}
    keep = objective.prepare(many, KEY, STEP).batch["keep"]
    assert keep.shape == (256, 2, 2) and (keep[:, 0] == 1).all()  # the first block always stays
    assert set(np.unique(keep[:, 1])) == {0.0, 2.0}
    assert abs(keep[:, 1].mean() - 1) < 0.15
    assert "keep" not in small().prepare(batch, KEY, STEP).batch


def test_predictions_use_the_average(whole):
    objective, batch = small(ema_decay=0.5), batch_of()
    params = objective.init(rng.key(0, "init"))
    other = jax.tree.map(lambda p: p + 0.1, params)
    a = objective.classify(other, {}, objective.start(params), batch, KEY)["logits"]
    b = small().classify(params, {}, {}, batch, KEY)["logits"]
    np.testing.assert_array_equal(a, b)


def test_rules_cover_the_whole_state():
    objective = small(ema_decay=0.9)
    config = OptimConfig(1e-3, 0.0, "constant", 0.9, 0.95, 0.0, 0.0, None, 0.5, (), None, ())
    state = jax.eval_shape(
        lambda key: init_state(objective, Optimizer(config, 8, 0, 1), key), rng.key(0, "init")
    )
    sharding.state_shardings(state, sharding.make_mesh(data=4, fsdp=2))


@pytest.mark.parametrize("wrong, told", [
    (dict(drop_path=1.0), "drop_path"),
    (dict(findings=("Edema", "Edema")), "each once"),
    (dict(findings=()), "findings"),
    (dict(head=LinearConfig(kind="linear", pool="cls", layers=3)), "head.layers is 3"),
    (dict(image_size=18), "image_size 18"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        small(**wrong)


def record():
    labels = np.full(len(FINDINGS), np.nan, np.float32)
    labels[FINDINGS.index("Nodule")], labels[FINDINGS.index("Edema")] = 1.0, -1.0
    film = np.zeros((32, 32), np.uint8)
    film[:24] = np.arange(32)[None] * 8
    return {
        "image": encode_image(film),
        "valid_box": np.array([0, 0, 24, 32], np.int32),
        "labels": labels,
    }


def test_the_view_shows_film_padding_and_labels_in_their_order():
    view = LabelledView(16, (4, 4), ("Effusion", "Edema", "Nodule"), None, None)
    row = view(record(), np.random.default_rng(0))
    np.testing.assert_array_equal(row["labels"], [np.nan, -1, 1])
    np.testing.assert_array_equal(row["valid"].reshape(4, 4).all(axis=1), [1, 1, 1, 0])
    assert row["image"].shape == (16, 16, 1) and not row["image"][13:].any()

    crop = dataclasses.replace(view, crop_scale=(0.2, 0.5))
    assert crop(record(), np.random.default_rng(0))["valid"].all()  # crops show no padding
    with pytest.raises(ValueError, match="did you mean 'Edema'"):
        dataclasses.replace(view, findings=("Edma",))(record(), np.random.default_rng(0))


def test_an_augmented_film_takes_its_padding_along():
    from configs.segment_lungs import AUGMENT
    from xmae_jax.data.augment import Augment

    still = Augment(**(dict.fromkeys(AUGMENT, 0.0)))
    view = LabelledView(16, (4, 4), ("Edema",), None, still)
    row = view(record(), np.random.default_rng(0))
    np.testing.assert_array_equal(row["valid"].reshape(4, 4).all(axis=1), [1, 1, 1, 0])
    moved = dataclasses.replace(view, augment=dataclasses.replace(still, rotate=90.0))
    draws = [moved(record(), np.random.default_rng(i))["valid"].tobytes() for i in range(8)]
    assert len(set(draws)) > 1
    with pytest.raises(ValueError, match="choose one"):
        dataclasses.replace(view, crop_scale=(0.5, 1.0))
