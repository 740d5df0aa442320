"""Masked auto-encoding: what is hidden stays hidden, and only hidden valid patches count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_batch, small_mae
from xmae_jax import rng
from xmae_jax.config import objective_of, resolve
from xmae_jax.models.patches import patchify, unpatchify
from xmae_jax.models.pixel_decoder import PixelDecoder
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.objectives.mae import normalise
from xmae_jax.objectives.masking import lung_coverage

KEY = rng.key(0, "train")
STEP = jnp.zeros((), jnp.int32)


@pytest.fixture(scope="module")
def made():
    mae = small_mae()
    params = jax.jit(mae.init)(rng.key(0, "init"))
    return mae, params, mae.prepare(small_batch(), KEY, STEP)


def total(mae, params, batch):
    return mae.loss(params, {}, {}, batch, KEY, STEP).totals["reconstruction"]


def test_hidden_pixels_never_reach_the_encoder(made):
    mae, params, prepared = made
    batch = prepared.batch
    encode = jax.jit(lambda b: mae.model(params, {}).encoder(normalise(b["image"]), b["keep_ids"]))
    before = encode(batch)
    hidden = np.kron(np.asarray(batch["hidden"]).reshape(-1, 8, 8), np.ones((4, 4), bool))
    other = jnp.where(hidden[..., None], 255 - batch["image"], batch["image"])
    assert (other != batch["image"]).any()
    after = encode({**batch, "image": other})
    np.testing.assert_array_equal(before.cls, after.cls)
    np.testing.assert_array_equal(before.patches, after.patches)
    seen = jnp.where(~hidden[..., None], 255 - batch["image"], batch["image"])
    assert (encode({**batch, "image": seen}).patches != before.patches).any()


def test_only_hidden_valid_patches_of_real_rows_count(made, monkeypatch):
    mae, params, prepared = made
    batch = prepared.batch
    target = np.asarray(batch["target"])
    assert not target[:, 56:].any() and np.asarray(batch["hidden"])[:, 56:].all()

    before = mae.loss(params, {}, {}, batch, KEY, STEP)
    predict = PixelDecoder.__call__

    def counts(ids):
        return jnp.take_along_axis(batch["target"], ids, axis=1)[..., None]

    def wild(self, features, hidden, ids):
        return jnp.where(counts(ids), predict(self, features, hidden, ids), jnp.nan)

    monkeypatch.setattr(PixelDecoder, "__call__", wild)
    after = mae.loss(params, {}, {}, batch, KEY, STEP)
    assert jnp.isfinite(before.totals["reconstruction"])
    jax.tree.map(np.testing.assert_array_equal, before, after)

    def off_by_one(self, features, hidden, ids):
        return predict(self, features, hidden, ids) + counts(ids)

    monkeypatch.setattr(PixelDecoder, "__call__", off_by_one)
    moved = mae.loss(params, {}, {}, batch, KEY, STEP)
    assert moved.totals["reconstruction"] != before.totals["reconstruction"]


def test_padding_rows_and_empty_batches(made):
    mae, params, _ = made
    batch = small_batch()
    half = {**batch, "mask": batch["mask"].at[4:].set(False)}
    prepared = mae.prepare(half, KEY, STEP)
    out = mae.loss(params, {}, {}, prepared.batch, KEY, STEP)
    first = {k: v[:4] for k, v in mae.prepare(batch, KEY, STEP).batch.items()}
    np.testing.assert_allclose(out.totals["reconstruction"], total(mae, params, first), rtol=1e-5)
    nothing = mae.prepare({**batch, "mask": jnp.zeros(8, bool)}, KEY, STEP)
    assert nothing.weights["reconstruction"] == 0
    assert total(mae, params, nothing.batch) == 0


def test_inside_and_outside_make_the_whole(made):
    mae, params, prepared = made
    out = mae.loss(params, {}, {}, prepared.batch, KEY, STEP)
    inside, outside = out.metrics["loss_inside"], out.metrics["loss_outside"]
    np.testing.assert_allclose(
        inside.total + outside.total, out.totals["reconstruction"], rtol=1e-5
    )
    assert inside.weight + outside.weight == prepared.weights["reconstruction"]
    assert inside.weight > 0 and outside.weight > 0


def test_norm_pix_targets():
    mae = small_mae(norm_pix_loss=True)
    patches = patchify(normalise(small_batch()["image"]), 4)
    target, mean, deviation = mae._targets(patches)
    x = np.asarray(patches, np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(target, expected, atol=1e-5)
    np.testing.assert_allclose(target * deviation + mean, patches, atol=1e-5)
    flat = jnp.full((1, 1, 16), -1.0).at[0, 0, 0].set(-1 + 2 / 255)
    floored = small_mae(norm_pix_loss=True, norm_pix_floor=2 / 255)
    assert float(jnp.abs(floored._targets(flat)[0]).max()) <= 1.0
    assert float(jnp.abs(mae._targets(flat)[0]).max()) > 3.0


def test_patchify_order_and_inverse():
    image = jnp.arange(2 * 8 * 12, dtype=jnp.float32).reshape(2, 8, 12, 1)
    patches = patchify(image, 4)
    np.testing.assert_array_equal(patches[0, 1], np.asarray(image)[0, :4, 4:8, 0].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 4), image)


def test_released_preset_is_the_released_size(monkeypatch):
    from configs import pretrain_1280_released

    mae = objective_of(resolve(pretrain_1280_released.get_config()), OBJECTIVES)
    params = jax.eval_shape(mae.init, rng.key(0, "init"))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert mae.grid == (20, 20)
    assert count == 348_250_112

    lengths = []
    from xmae_jax.models import pixel_decoder, vit

    for module in (vit, pixel_decoder):
        scan = module.scan
        monkeypatch.setattr(
            module,
            "scan",
            lambda b, x, scan=scan, **how: (
                lengths.append(x.shape[1]),
                scan(b, x, **how),
            )[1],
        )
    batch = {
        "image": jax.ShapeDtypeStruct((2, 1280, 1280, 1), jnp.uint8),
        "lung": jax.ShapeDtypeStruct((2, 160, 160), jnp.uint8),
        "box": jax.ShapeDtypeStruct((2, 4), jnp.float32),
        "mask": jax.ShapeDtypeStruct((2,), bool),
        "id": jax.ShapeDtypeStruct((2, 2), jnp.int32),
    }

    def both(params, batch):
        prepared = mae.prepare(batch, KEY, STEP)
        return mae.loss(params, {}, {}, prepared.batch, KEY, STEP), prepared

    _, prepared = jax.eval_shape(both, params, batch)
    assert lengths == [47, 401]
    assert prepared.batch["keep_ids"].shape == (2, 46)


def test_masks_of_evaluation_follow_the_record():
    mae = small_mae()
    params = jax.jit(mae.init)(rng.key(0, "init"))
    look = jax.jit(lambda b: mae.reconstruct(params, {}, {}, b, rng.key(0, "eval")))
    batch = small_batch()
    whole, last = look(batch), look({k: v[4:] for k, v in batch.items()})
    np.testing.assert_array_equal(whole["hidden"][4:], last["hidden"])
    assert (whole["hidden"][0] != whole["hidden"][1]).any()
    assert whole["reconstruction"].shape == (8, 32, 32, 1)


def test_average_of_parameters():
    mae = small_mae(ema_decay=0.5)
    params = jax.jit(mae.init)(rng.key(0, "init"))
    extra = mae.start(params)
    moved = jax.tree.map(lambda p: p + 1.0, params)
    after = mae.after_update(moved, extra, jnp.asarray(1000, jnp.int32))
    for start, average in zip(jax.tree.leaves(params), jax.tree.leaves(after["ema"]), strict=True):
        np.testing.assert_allclose(average, start + 0.5, atol=1e-6)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size 30"):
        small_mae(image_size=30)
    with pytest.raises(ValueError, match="mask.keep is 64"):
        small_mae(mask=dataclasses.replace(small_mae().mask, keep=64))


@pytest.mark.parametrize("kind", ["contour", "rectangle", "random"])
def test_each_kind_of_mask(kind):
    mask = dataclasses.replace(small_mae().mask, kind=kind, ratio_inside=1.0, ratio_outside=0.5)
    mae = small_mae(mask=mask)
    batch = {**small_batch(64), "box": jnp.tile(jnp.array([[0.0, 0.0, 1.0, 1.0]]), (64, 1))}
    prepared = mae.prepare(batch, KEY, STEP).batch
    visible = ~np.asarray(prepared["hidden"]).reshape(64, 8, 8)
    # The contour covers half of the patches of columns 1 and 6, which is enough to be inside.
    contour, rectangle = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    contour[2:6, 1:7], rectangle[3:7, 2:7] = True, True
    np.testing.assert_array_equal(np.asarray(prepared["inside"][0]).reshape(8, 8), contour)
    assert prepared["uniform"].all() == (kind == "random")
    if kind != "random":
        region = contour if kind == "contour" else rectangle
        assert not visible[:, region].any() and visible[:, ~region].any(0).all()
    else:
        assert visible.any(0).all()
    shown = np.asarray(lung_coverage(mae._region(batch), (8, 8)))[0].reshape(8, 8) >= 0.5
    wanted = {"contour": contour, "rectangle": rectangle, "random": np.zeros((8, 8), bool)}
    np.testing.assert_array_equal(shown, wanted[kind])


def test_the_released_config_keeps_40_and_6():
    from configs import pretrain_1280_released

    mae = objective_of(resolve(pretrain_1280_released.get_config()), OBJECTIVES)
    batch = {
        "image": jnp.zeros((3, 1280, 1280, 1), jnp.uint8),
        "lung": jnp.zeros((3, 160, 160), jnp.uint8),
        "box": jnp.tile(jnp.array([[0.0, 0.0, 1.0, 1.0]]), (3, 1)),
        "mask": jnp.ones(3, bool),
        "id": jnp.zeros((3, 2), jnp.int32),
    }
    visible = ~np.asarray(mae.prepare(batch, KEY, STEP).batch["hidden"]).reshape(3, 20, 20)
    assert (visible[:, 6:16, 3:16].sum((1, 2)) == 6).all() and (visible.sum((1, 2)) == 46).all()


def test_predictions_use_the_average_and_say_what_they_were_given():
    mae, plain = small_mae(ema_decay=0.9), small_mae()
    one, two = (jax.jit(mae.init)(rng.key(i, "init")) for i in (0, 1))
    batch, key = small_batch(), rng.key(0, "eval")
    by_average = mae.reconstruct(one, {}, {"ema": two}, batch, key)
    alone = plain.reconstruct(two, {}, {}, batch, key)
    np.testing.assert_array_equal(by_average["reconstruction"], alone["reconstruction"])
    assert not by_average["given_statistics"].any()

    told = small_mae(norm_pix_loss=True).reconstruct(two, {}, {}, batch, key)
    assert told["given_statistics"].all()
    means = patchify(told["reconstruction"], 4).mean(-1) - alone["reconstruction"].mean()
    true = patchify(batch["image"] / 255, 4).mean(-1)
    assert np.corrcoef(means.reshape(-1), true.reshape(-1))[0, 1] > 0.5


def cross(share=1.0, **changes):
    decoder = dataclasses.replace(small_mae().decoder, kind="cross", predict_share=share)
    return small_mae(decoder=decoder, **changes)


def test_cross_attention_predicts_hidden_patches_from_visible_ones():
    """A hidden patch's prediction knows no other hidden patch, nor how many are predicted."""
    mae, some = cross(), cross(0.25)
    params = jax.jit(mae.init)(rng.key(0, "init"))
    batch = mae.prepare(small_batch(), KEY, STEP).batch
    assert batch["ids"].shape == (8, 64 - 12)
    whole = mae._predict(mae.model(params, {}), batch)
    few = some.prepare(small_batch(), KEY, STEP).batch
    assert few["ids"].shape == (8, 13)
    np.testing.assert_array_equal(few["hidden"], batch["hidden"])
    part = some._predict(some.model(params, {}), few)
    place = jax.vmap(jnp.searchsorted)(batch["ids"], few["ids"])
    want = jnp.take_along_axis(whole, place[:, :, None], axis=1)
    np.testing.assert_allclose(part, want, atol=1e-6)
    assert (np.ptp(np.asarray(whole), axis=1) > 1e-3).any()  # and depends on its place


def test_a_share_is_drawn_from_valid_hidden_patches():
    batch = small_batch()
    few = cross(0.25).prepare(batch, KEY, STEP)
    target, hidden = np.asarray(few.batch["target"]), np.asarray(few.batch["hidden"])
    assert (target.sum(1) == 13).all() and (target <= hidden).all() and not target[:, 56:].any()
    assert few.weights["reconstruction"] == 13 * 8
    other = cross(0.25).prepare(batch, rng.key(1, "train"), STEP).batch["target"]
    assert (np.asarray(other) != target).any()
    # More than there are valid ones: invalid ones fill up, and do not count.
    most = cross(1 - 1 / 52).prepare(batch, KEY, STEP).batch
    valid = np.asarray(most["hidden"])[:, :56].sum(1)
    np.testing.assert_array_equal(np.asarray(most["target"]).sum(1), valid)


def test_the_cross_decoder_alone_may_predict_a_share():
    with pytest.raises(ValueError, match="predict_share"):
        dataclasses.replace(small_mae().decoder, predict_share=0.5)
    with pytest.raises(ValueError, match="predict_share"):
        cross(0.0)


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("attention", ["plain", "chunked"])
def test_recomputation_changes_no_gradient(remat, attention):
    params = jax.jit(small_mae().init)(rng.key(0, "init"))
    batch = small_mae().prepare(small_batch(), KEY, STEP).batch

    def gradient(mae):
        return jax.jit(jax.grad(lambda p: total(mae, p, batch)))(params)

    want = gradient(small_mae())
    got = gradient(small_mae(remat=remat, attention=attention))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
