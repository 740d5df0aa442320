"""Which contour a film gets, and when it falls back."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from data_prep import build, contours, phantoms
from data_prep.contours import find_lungs
from data_prep.films import Job, Settings, make_record
from data_prep.inputs import Row
from tests.data.made import RAMP, dicom
from tests.data.test_lungs import made_film, two_lungs
from xmae_jax.data import records
from xmae_jax.data.lungs import dice
from xmae_jax.data.records import NO_REPORT

SHAPE = (300, 280)
LUNGS = two_lungs(SHAPE)
FILM = made_film(LUNGS)  # its lungs are found by the heuristic
BLANK = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)  # nothing is found


@pytest.fixture
def model(monkeypatch):
    """Put a model in place that gives the masks of `told`, one a channel."""
    told = [LUNGS, two_lungs(SHAPE, left=False)]

    def run(pixels):
        small = [Image.fromarray(mask).resize((64, 64)) for mask in told]
        return np.stack([np.asarray(mask, np.float32) for mask in small], axis=2)

    monkeypatch.setattr(contours, "_model", lambda: run)
    return told


def find(pixels=FILM, given=None, **changes):
    fields = dict(lungs="auto", retrocardiac="exclude", view="PA", name="hand")
    return find_lungs(pixels, given, **(fields | changes))


def saved(tmp_path, mask):
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    return path


def test_a_given_mask_comes_first(tmp_path, model):
    one = two_lungs(SHAPE, left=False)
    contour = find(given=saved(tmp_path, one))
    np.testing.assert_array_equal(contour.mask, one)
    assert contour.source == "given:hand" and 0 < contour.quality < contours.MIN_QUALITY
    assert find(given=saved(tmp_path, LUNGS), name="file").source == "given:file"
    assert find(given=saved(tmp_path, LUNGS), view="L").source == "given:hand"


@pytest.mark.parametrize(
    "mask", [np.zeros(SHAPE, bool), np.ones(SHAPE, bool), two_lungs((300, 200))]
)
def test_a_given_mask_that_cannot_be_used_counts_as_absent(tmp_path, model, mask):
    assert find(given=saved(tmp_path, mask)).source == "model"
    assert find(given=saved(tmp_path, mask), lungs="given") == contours.NO_CONTOUR


def test_a_given_mask_may_have_the_shape_of_the_stored_pixels(tmp_path, model):
    stored = two_lungs((300, 140))  # of pixels twice as wide as high
    contour = find(given=saved(tmp_path, stored), stored_size=(300, 140))
    assert contour.source == "given:hand" and contour.mask.shape == stored.shape
    assert find(given=saved(tmp_path, LUNGS), stored_size=(300, 140)).source == "given:hand"
    other = saved(tmp_path, two_lungs((300, 200)))
    assert find(given=other, stored_size=(300, 140)).source == "model"


def test_a_mask_of_a_film_whose_pixels_are_not_square(tmp_path):
    film = dicom(tmp_path / "film", RAMP, PixelSpacing=["0.1", "0.2"])  # 80 x 100, made 80 x 200
    settings = Settings(
        size=96, fit="pad", lungs="given", retrocardiac="exclude", frames="refuse", codec="jpeg"
    )
    masks = two_lungs(RAMP.shape), two_lungs((80, 200))
    stored = []
    for mask in masks:
        job = Job(
            "film",
            film,
            saved(tmp_path, mask),
            Row(),
            NO_REPORT,
            "p",
            "train",
        )
        record = records.decode(make_record(job, settings, bytes(32)).example)
        assert record["mask_source"] == "given:file"
        stored.append(records.decode_mask(record["lung_mask"]))
    assert dice(*stored) > 0.95


def test_the_model_where_it_is_good(model):
    contour = find()
    assert contour.source == "model" and dice(contour.mask, LUNGS) > 0.97
    assert contour.quality > 0.9 and contour.agreement > 0.8
    assert find(BLANK).source == "model"  # the heuristic finds nothing, and is not needed
    assert find(BLANK).quality < contour.quality


def test_the_other_channel(model):
    model[1] = LUNGS
    assert find(retrocardiac="include").source == "model:with_heart"


@pytest.mark.parametrize(
    "bad", [np.zeros(SHAPE, bool), two_lungs(SHAPE, left=False), LUNGS.T[:, :280]]
)
def test_a_bad_contour_falls_back(model, bad):
    model[0] = np.asarray(Image.fromarray(bad).resize(SHAPE[::-1]))
    contour = find(BLANK)
    assert contour.source == "none" and contour.mask is None and contour.quality == 0
    assert not math.isnan(contour.agreement)


def test_the_heuristic_follows_the_model(model):
    model[0] = LUNGS.copy()
    model[0][130:150, 84:196] = True  # one part, and so not good enough
    contour = find()
    assert contour.source == "heuristic" and dice(contour.mask, LUNGS) > 0.8
    # A model that sees no lungs at all says that the film is none.
    model[0] = np.zeros(SHAPE, bool)
    assert find().source == "none"


def test_what_is_not_frontal_gets_none(model):
    for lungs in ("auto", "model", "heuristic"):
        assert find(lungs=lungs, view="LATERAL") == contours.NO_CONTOUR
        assert find(lungs=lungs, view="").mask is not None


def test_other_choices(monkeypatch):
    def unwanted():
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(contours, "_model", unwanted)
    assert find(lungs="none") == contours.NO_CONTOUR
    assert find(lungs="given") == contours.NO_CONTOUR
    assert find(lungs="rectangle", view="L").source == "rectangle"
    contour = find(lungs="heuristic")
    assert contour.source == "heuristic" and math.isnan(contour.agreement)
    assert find(BLANK, lungs="heuristic").source == "none"


@pytest.mark.slow
def test_a_build_stores_the_models_contours(tmp_path):
    """Any number of workers gives the same bytes, and each channel is another contour."""
    drawn = [phantoms.draw(3, i, size=192) for i in range(8)]
    for i, phantom in enumerate(p for p in drawn if p.view != "LATERAL"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(phantom.image).save(tmp_path / "in" / f"{i}.png")

    def built(name, *flags):
        places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / name)]
        shared = ["--size", "192", "--key", str(tmp_path / "key")]
        assert build.main([*places, *shared, *flags]) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob("*array_record*")}

    one = built("one", "--workers", "1")
    assert one == built("two", "--workers", "2")
    assert one != built("heart", "--workers", "1", "--retrocardiac", "include")
    for name, source in (("one", "model"), ("heart", "model:with_heart")):
        told = json.loads((tmp_path / name / "manifest.json").read_text())
        assert told["counts"]["masks"] == {source: told["counts"]["films"]}
