"""The view for segmentation: film and contour move together, and only what is known counts."""

import dataclasses

import numpy as np
import pytest
from skimage.draw import ellipse

from configs.segment_lungs import AUGMENT
from xmae_jax.data.augment import Augment, warp
from xmae_jax.data.lungs import CHANNELS, convention, dice, hull, is_frontal, truths
from xmae_jax.data.records import encode_image, encode_mask
from xmae_jax.data.views import SegmentView

MOVES = ("rotate", "scale", "stretch", "shift", "mirror")
STILL = Augment(**dict.fromkeys(AUGMENT, 0.0))


def lungs(side=96):
    mask = np.zeros((side, side), bool)
    for column in (0.3, 0.7):
        spot = 0.5 * side, column * side, 0.3 * side, 0.14 * side
        mask[ellipse(*spot, shape=mask.shape)] = True
    return mask


def record_of(mask=None, *, source="given:montgomery-manual", view="PA", side=128):
    """Make a record whose film is bright inside the contour, and dark elsewhere."""
    mask = lungs() if mask is None else mask
    film = np.kron(mask, np.ones((side // 32, side // 32)))[::3, ::3]
    return {
        "image": encode_image((film * 200).astype(np.uint8)),
        "lung_mask": encode_mask(mask),
        "lung_hull": encode_mask(hull(mask)),
        "mask_source": source,
        "source": "somewhere",
        "view": view,
    }


@pytest.mark.parametrize("name", MOVES)
def test_film_and_contour_move_together(name):
    augment = dataclasses.replace(STILL, **{name: max(AUGMENT[name], float(name == "mirror"))})
    lopsided = lungs()
    lopsided[:40, 48:] = False
    still = SegmentView(64, None)(record_of(lopsided), np.random.default_rng(0))
    moved = []
    for seed in range(4):
        row = SegmentView(64, augment)(record_of(lopsided), np.random.default_rng(seed))
        assert dice(row["image"][:, :, 0] >= 100, row["truth"][:, :, 0] > 0) > 0.95
        moved.append(dice(row["truth"][:, :, 0] > 0, still["truth"][:, :, 0] > 0))
    assert min(moved) < 0.95


def test_without_strength_nothing_changes():
    still = SegmentView(64, None)(record_of(), np.random.default_rng(0))
    same = SegmentView(64, STILL)(record_of(), np.random.default_rng(0))
    assert dice(still["truth"][:, :, 0] > 0, same["truth"][:, :, 0] > 0) > 0.98
    assert np.abs(still["image"].astype(int) - same["image"]).mean() < 3
    place = STILL.place(np.random.default_rng(0), 40)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    np.testing.assert_array_equal(warp(picture, place, 40), picture)


@pytest.mark.parametrize("name", sorted(AUGMENT.keys() - set(MOVES)))
def test_exposure_changes_grey_values_alone(name):
    strength = 1.0 if name == "invert" else AUGMENT[name]
    view = SegmentView(64, dataclasses.replace(STILL, **{name: strength}))
    rows = [view(record_of(), np.random.default_rng(seed)) for seed in range(8)]
    plain = SegmentView(64, STILL)(record_of(), np.random.default_rng(0))
    assert any((row["image"] != plain["image"]).any() for row in rows)
    for row in rows:
        np.testing.assert_array_equal(row["truth"], plain["truth"])


def test_a_row_depends_on_its_generator_alone():
    view = SegmentView(64, Augment(**AUGMENT))
    one, same, other = (view(record_of(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name])
    assert (one["image"] != other["image"]).any()
    assert one["image"].shape == (64, 64, 1) and one["truth"].shape == (64, 64, 2)
    assert all(value.dtype == np.uint8 for value in one.values())


def test_conventions():
    rng = np.random.default_rng(0)
    view = SegmentView(64, None)
    known = view(record_of(source="given:montgomery-manual"), rng)["known"]
    assert known[:, :, 0].all() and 0 < known[:, :, 1].mean() < 1
    known = view(record_of(source="given:v7-darwin-human"), rng)["known"]
    assert known[:, :, 1].all() and 0 < known[:, :, 0].mean() < 1
    for source in ("given:somebody", "heuristic", "model", "none"):
        assert not view(record_of(source=source), rng)["known"].any()
    drawn = record_of(source="given:file") | {"source": "phantom-v1"}
    assert convention(drawn) == "lungs" and view(drawn, rng)["known"][:, :, 0].all()


@pytest.mark.parametrize("view", ["L", "LATERAL", "LL", "AXIAL", "OTHER"])
def test_what_is_not_frontal_has_nothing_to_outline(view):
    row = SegmentView(64, None)(record_of(view=view), np.random.default_rng(0))
    assert row["known"].all() and not row["truth"].any()


def test_views():
    known = ("", "PA", "ap supine", "Frontal", "POSTERO_ANTERIOR", "Erect", "A-P", "AP AXIAL", "?")
    assert all(map(is_frontal, known))
    others = ("L", "LATERAL", "OTHER", "RLD", "PA LLD", "ANTERO-LATERAL", "left_lateral", "lat")
    assert not any(map(is_frontal, others))


def test_what_a_contour_tells_of_the_other_channel():
    mask, region = lungs(), hull(lungs())
    inside, unknown = truths(mask, region, drawn="lungs")
    assert not unknown[:, :, 0].any()
    np.testing.assert_array_equal(unknown[:, :, 1], region & ~mask)
    assert unknown[48, 48, 1]  # the mediastinum
    inside, unknown = truths(mask, region, drawn="lungs_with_heart")
    assert not unknown[:, :, 1].any() and (unknown[:, :, 0] <= mask).all()
    middle = [i for i in range(96) if unknown[48, i, 0]]
    assert unknown[48, 40, 0] and unknown[48, 56, 0] and not unknown[48, [17, 20, 75, 79], 0].any()
    assert middle and inside.shape == (96, 96, len(CHANNELS))


def test_wrong_strengths_are_refused():
    with pytest.raises(ValueError, match="noise must not be negative"):
        dataclasses.replace(STILL, noise=-1.0)
    with pytest.raises(ValueError, match="must not pass 1"):
        dataclasses.replace(STILL, mirror=1.5)
