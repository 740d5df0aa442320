"""The shipped lung model: its weights are what they should be, and it finds lungs."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest

from data_prep.contours import find_lungs
from data_prep.phantoms import draw
from tests.runs import finish
from xmae_jax.data.film import read_film, read_mask
from xmae_jax.data.lungs import MODEL, contour_of, dice
from xmae_jax.tasks.lungs import WeightsError, export_lung_model, load_lung_model


@pytest.fixture(scope="module")
def model():
    return load_lung_model()


def copied(folder):
    for suffix in (".safetensors", ".json"):
        shutil.copy(MODEL.with_suffix(suffix), folder)
    return folder / MODEL.name


def test_shipped_weights_are_small_and_run_nothing():
    assert MODEL.stat().st_size <= 4e6
    assert MODEL.read_bytes()[8:9] == b"{"  # the header of safetensors is JSON


def test_weights_that_are_not_as_written_are_refused(tmp_path):
    path = copied(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="lungs.safetensors: sha256 is"):
        load_lung_model(path)
    path.unlink()
    with pytest.raises(WeightsError, match="does not read"):
        load_lung_model(path)


def test_phantoms_have_lungs_where_they_were_drawn(model):
    frontal = [p for p in (draw(5, i, size=256) for i in range(6)) if p.view != "LATERAL"]
    for phantom in frontal:
        probability = model(phantom.image)
        assert probability.shape[2] == 2 and probability.dtype == np.float32
        found = contour_of(probability[:, :, 0], phantom.image.shape)
        assert dice(found, phantom.lung_mask) > 0.9
        np.testing.assert_array_equal(model(phantom.image), probability)
        mirrored = contour_of(model(phantom.image[:, ::-1])[:, ::-1, 0], phantom.image.shape)
        assert dice(mirrored, found) > 0.999
    assert frontal


def test_any_size_of_film(model):
    for shape in ((64, 64), (300, 1000), (2000, 1500)):
        assert model(np.zeros(shape, np.uint8)).shape == model(np.ones((9, 9), np.uint8)).shape


def test_a_run_is_exported_whole(shards, tmp_path):
    """What is shipped is the average of the run's parameters, to float16."""
    workdir, weights = tmp_path / "run", tmp_path / "out" / "lungs.safetensors"
    argv = [sys.executable, "-m", "xmae_jax.main", "--config=configs/segment_lungs.py:smoke"]
    argv += [f"--workdir={workdir}", f"--config.data.path={shards}", "--config.total_steps=2"]
    argv += ["--config.eval_rows=4"]
    code, out = finish(argv)
    assert code == 0, out
    assert "lungs" in out and "Dice" in out  # the evaluator's table
    export_lung_model(workdir, weights=weights)
    told = json.loads(weights.with_suffix(".json").read_text())
    assert told["steps"] == 2 and told["image_size"] == 64
    film = draw(5, 0, size=96).image
    assert load_lung_model(weights)(film).shape == (64, 64, 2)


def test_real_films_laterals_and_slices(cxr, model, monkeypatch):
    """A smoke check only: the model was trained on these Montgomery films."""
    monkeypatch.setattr("data_prep.contours._model", lambda: model)
    with (cxr / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mask_source"] == "montgomery-manual"]
    choices = dict(lungs="auto", retrocardiac="exclude", view="", name="")
    for row in rows[::12]:
        pixels, mask = read_film(cxr / row["image"]).pixels, read_mask(cxr / row["mask"])
        contour = find_lungs(pixels, None, **choices)
        assert contour.source == "model" and contour.quality > 0.9
        assert dice(contour.mask, mask) > 0.9
    with (cxr / "odd" / "odd.csv").open() as file:
        kinds = ("lateral view", "axial CT", "coronal CT")
        names = [r["file"] for r in csv.DictReader(file) if any(k in r["what"] for k in kinds)]
    assert len(names) == 10
    for name in (*names, "images/iu_1000_IM-0003-2001.png"):
        assert find_lungs(read_film(cxr / name).pixels, None, **choices).source == "none", name
