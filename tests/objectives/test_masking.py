"""Contour-aware masking: exact counts, uniform draws, rows that know nothing of each other."""

import io
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2

from xmae_jax import rng
from xmae_jax.data import lungs
from xmae_jax.data.batch import row_rng
from xmae_jax.data.views import FilmView
from xmae_jax.objectives.masking import (
    _rounded_share,
    _weights,
    box_coverage,
    contour_mask,
    lung_coverage,
    random_mask,
    rectangle_inside,
)

KEYS = rng.row_keys(rng.key(7, "train"), 16)


def wanted_inside(n_in, n_out, keep, ratio_inside, ratio_outside):
    """Return the count of the formula, and whether x is too near .5 to be sure of it."""
    weight = n_in * (1 - ratio_inside) + n_out * (1 - ratio_outside)
    x = keep * n_in * (1 - ratio_inside) / weight
    count = int(np.floor(x + 0.5))
    low, high = max(0, keep - n_out), min(keep, n_in)
    return min(max(count, low), high), abs(x % 1 - 0.5) < 1e-3


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def real_regions(cxr, *, grid, region, count=None):
    """Return (inside, valid) [b n] of square-padded real films with a mask, by their view."""
    view = FilmView(image_size=grid, grid=(grid, grid), contour_region=region, crop_scale=None)
    lung, boxes = [], []
    paths = sorted((cxr / "lung_masks").glob("*.png"))
    for path in paths[:: len(paths) // count if count else 1][:count]:
        mask = Image.open(path).convert("L")
        mask.thumbnail((320, 320))
        mask = np.asarray(mask) > 127
        side = max(mask.shape)
        top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
        square = np.zeros((side, side), bool)
        square[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        record = {
            "image": png(np.zeros((side, side), np.uint8)),
            "lung_mask": png(square),
            "lung_hull": png(lungs.hull(square)),
            "valid_box": np.array([top, left, top + mask.shape[0], left + mask.shape[1]]),
        }
        seen = view(record, row_rng(0, 0, 0))
        lung.append(seen["lung"])
        boxes.append(seen["box"])
    inside = lung_coverage(jnp.asarray(np.stack(lung)), (grid, grid)) >= 0.5
    return inside, box_coverage(jnp.asarray(np.stack(boxes)), (grid, grid)) >= 0.5


@pytest.mark.parametrize("region", ["lungs", "hull"])
@pytest.mark.parametrize(
    ("grid", "keep", "ratios"), [(20, 46, (0.95, 0.85)), (80, 736, (0.9, 0.6))]
)
def test_counts_on_real_masks(cxr, region, grid, keep, ratios):
    inside, valid = real_regions(cxr, grid=grid, region=region)
    keys = rng.row_keys(rng.key(1, "train"), len(inside))
    mask = contour_mask(
        keys, inside, keep=keep, ratio_inside=ratios[0], ratio_outside=ratios[1], valid=valid
    )
    visible, inside, valid = ~np.asarray(mask.hidden), np.asarray(inside), np.asarray(valid)
    assert (visible.sum(1) == keep).all()
    assert not (visible & ~valid).any(), "padding is visible"
    assert not np.asarray(mask.uniform).any()
    for row in range(len(inside)):
        n_in, n_out = (inside & valid)[row].sum(), (~inside & valid)[row].sum()
        count, unsure = wanted_inside(n_in, n_out, keep, *ratios)
        assert abs((visible & inside)[row].sum() - count) <= int(unsure)
        np.testing.assert_array_equal(mask.keep_ids[row], np.flatnonzero(visible[row]))
    assert mask.keep_ids.dtype == jnp.int32


def uniformity(visible, region):
    """Return both tails' p-values that patches of a region are equally likely over draws."""
    counts = visible[:, region].sum(0)
    m, draws = region.sum(), len(visible)
    p = counts.sum() / (m * draws)
    x = (m - 1) / m * ((counts - draws * p) ** 2).sum() / (draws * p * (1 - p))
    return chi2.sf(x, m - 1), chi2.cdf(x, m - 1)


@pytest.mark.parametrize("region", ["lungs", "hull"])
def test_uniform_within_regions_of_real_masks(cxr, region):
    inside, valid = real_regions(cxr, grid=20, region=region, count=10)
    draws, tests = 2000, 2 * 2 * len(inside)
    for row in range(len(inside)):
        mask = contour_mask(
            rng.row_keys(rng.key(3, "train", row), draws),
            jnp.broadcast_to(inside[row], (draws, 400)),
            keep=46,
            ratio_inside=0.95,
            ratio_outside=0.85,
            valid=jnp.broadcast_to(valid[row], (draws, 400)),
        )
        visible = ~np.asarray(mask.hidden)
        for part in (inside[row] & valid[row], ~inside[row] & valid[row]):
            assert min(uniformity(visible, np.asarray(part))) > 0.01 / tests


def test_uniformity_test_sees_a_bad_sampler():
    region = np.ones(100, bool)
    visible = np.argsort(np.random.default_rng(0).random((2000, 100)) * np.linspace(1, 1.5, 100))
    biased = np.zeros((2000, 100), bool)
    np.put_along_axis(biased, visible[:, :10], True, axis=1)
    assert uniformity(biased, region)[0] < 1e-6
    lattice = np.zeros((2000, 100), bool)  # too even: the lower tail
    for i in range(2000):
        lattice[i, (i * 10 + np.arange(10)) % 100] = True
    assert uniformity(lattice, region)[1] < 1e-6


def test_rows_are_alone(cxr):
    inside, valid = real_regions(cxr, grid=20, region="hull", count=16)
    options = dict(keep=46, ratio_inside=0.95, ratio_outside=0.85)
    whole = contour_mask(KEYS, inside, valid=valid, **options).hidden
    order = np.random.default_rng(0).permutation(16)
    moved = contour_mask(KEYS[order], inside[order], valid=valid[order], **options).hidden
    np.testing.assert_array_equal(moved, whole[order])
    few = contour_mask(KEYS[3:8], inside[3:8], valid=valid[3:8], **options).hidden
    np.testing.assert_array_equal(few, whole[3:8])

    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.jit(lambda k, i, v: contour_mask(k, i, valid=v, **options).hidden)(
        *jax.device_put((KEYS, inside, valid), rows)
    )
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, whole)


def test_ties_round_up_in_every_batch():
    # n_in = n_out: x = 46 / 4 = 11.5. A float would round it as the program pleases.
    options = dict(keep=46, ratio_inside=0.95, ratio_outside=0.85)
    patch = jnp.arange(400)
    inside = jnp.broadcast_to(patch < 89, (16, 400))
    valid = jnp.broadcast_to(patch < 178, (16, 400))
    whole = contour_mask(KEYS, inside, valid=valid, **options).hidden
    assert ((~whole & inside).sum(1) == 12).all()
    jitted = jax.jit(lambda k, i, v: contour_mask(k, i, valid=v, **options).hidden)
    for rows in (slice(0, 1), slice(2, 5), slice(0, 16)):
        np.testing.assert_array_equal(jitted(KEYS[rows], inside[rows], valid[rows]), whole[rows])


@pytest.mark.parametrize(
    ("keep", "n", "ratios"),
    [(46, 400, (0.95, 0.85)), (736, 6400, (0.95, 0.85)), (736, 6400, (0.9333333, 0.81714287)),
     (6399, 6400, (0.1, 0.99)), (100, 400, (1.0, 0.5)), (300, 400, (0.0, 0.0))],
)  # fmt: skip
def test_shares_are_exact(keep, n, ratios):
    a, b = _weights(*ratios, n)
    draw = np.random.default_rng(0)
    n_in = draw.integers(1, n, 2000)
    n_out = np.minimum(draw.integers(1, n, 2000), n - n_in + 1)
    got = jax.vmap(lambda i, o: _rounded_share(keep, i * a, i * a + o * b))(
        jnp.asarray(n_in, jnp.uint32), jnp.asarray(n_out, jnp.uint32)
    )
    see_in, see_out = (1 - Fraction(repr(r)) for r in ratios)
    for i, o, count in zip(n_in.tolist(), n_out.tolist(), got.tolist(), strict=True):
        x = keep * i * see_in / (i * see_in + o * see_out)
        assert count == (x + Fraction(1, 2)) // 1


@pytest.mark.parametrize("case", ["empty", "full", "ratios"])
def test_without_a_region_rows_are_uniform(case):
    inside = jnp.zeros((16, 64), bool) if case == "empty" else jnp.ones((16, 64), bool)
    ratios = dict(ratio_inside=0.95, ratio_outside=0.85)
    if case == "ratios":
        inside, ratios = inside.at[:, 10:].set(False), dict(ratio_inside=1.0, ratio_outside=1.0)
    valid = jnp.ones((16, 64), bool).at[:, 40:].set(False)
    mask = contour_mask(KEYS, inside, keep=10, valid=valid, **ratios)
    plain = random_mask(KEYS, 64, keep=10, valid=valid)
    np.testing.assert_array_equal(mask.hidden, plain.hidden)
    assert mask.uniform.all()


@pytest.mark.parametrize(
    ("n_in", "n_valid", "ratios", "inside_visible"),
    [
        (3, 64, (0.0, 0.9), 3),  # the region holds no more
        (60, 64, (0.99, 0.0), 6),  # the outside holds no more: 10 - 4
        (5, 64, (1.0, 0.5), 0),
        (5, 64, (0.5, 1.0), 5),
        (2, 6, (0.5, 0.5), 2),  # fewer valid patches than `keep`: all of them, then padding
    ],
)
def test_clamps(n_in, n_valid, ratios, inside_visible):
    patch = jnp.arange(64)
    inside = jnp.broadcast_to(patch < n_in, (16, 64))
    valid = jnp.broadcast_to(patch < n_valid, (16, 64))
    mask = contour_mask(
        KEYS, inside, keep=10, ratio_inside=ratios[0], ratio_outside=ratios[1], valid=valid
    )
    visible = ~mask.hidden
    assert (visible.sum(1) == 10).all()
    assert ((visible & inside).sum(1) == inside_visible).all()
    assert ((visible & valid).sum(1) == min(10, n_valid)).all()


def test_released_preset():
    region = rectangle_inside((20, 20))
    rows, columns = np.nonzero(region.reshape(20, 20))
    assert region.sum() == 130
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 3, 15)
    inside = jnp.broadcast_to(jnp.asarray(region), (16, 400))
    mask = contour_mask(KEYS, inside, keep=46, ratio_inside=0.95, ratio_outside=0.85)
    assert ((~mask.hidden & inside).sum(1) == 6).all()
    assert ((~mask.hidden & ~inside).sum(1) == 40).all()


def test_coverage():
    mask = np.zeros((1, 16, 16), np.uint8)
    mask[0, :6, 8:] = 1
    cover = np.asarray(lung_coverage(jnp.asarray(mask), (4, 4))).reshape(4, 4)
    np.testing.assert_allclose(cover[:, 2:], [[1, 1], [0.5, 0.5], [0, 0], [0, 0]])
    assert (cover[:, :2] == 0).all()
    box = np.asarray(box_coverage(jnp.array([[0.0, 0.125, 1.0, 0.875]]), (2, 4))).reshape(2, 4)
    np.testing.assert_allclose(box, [[0.5, 1, 1, 0.5]] * 2)
    with pytest.raises(ValueError, match="grid"):
        lung_coverage(jnp.asarray(mask), (5, 5))


def test_wrong_numbers_are_refused():
    inside = jnp.ones((16, 64), bool)
    with pytest.raises(ValueError, match="keep is 65"):
        contour_mask(KEYS, inside, keep=65, ratio_inside=0.5, ratio_outside=0.5)
    with pytest.raises(ValueError, match="ratios"):
        contour_mask(KEYS, inside, keep=6, ratio_inside=1.5, ratio_outside=0.5)
