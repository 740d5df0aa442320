"""Errors of hidden patches and of the predictors without a model, against a few lines of NumPy."""

import csv
import io

import numpy as np
import pytest

from xmae_jax.evaluators.reconstruction import WIDTHS, Reconstruction, gaussian_fill


def row(index, *, given=False, seed=0, size=32, side=8):
    draw = np.random.default_rng((seed, index))
    hidden = draw.random(side * side) < 0.7
    target = hidden & (np.arange(side * side) < 56)
    image = draw.integers(0, 256, (size, size, 1), dtype=np.uint8)
    image[:, : size // 2] //= 4
    return {
        "id": np.array([0, index], np.int32),
        "image": image,
        "region": np.zeros((64, 64), np.uint8),
        "box": np.array([0, 0, 0.875, 1], np.float32),
        "hidden": hidden,
        "target": target,
        "reconstruction": draw.random((size, size, 1)).astype(np.float32),
        "given_statistics": np.array(given),
    }


def splits(**kwargs):
    return {
        "train": lambda: (row(i, seed=1, **kwargs) for i in range(12)),
        "val": lambda: (row(i, **kwargs) for i in range(7)),
    }


def test_numbers_against_numpy():
    metrics, predictions = Reconstruction().evaluate(splits())
    films = [row(i) for i in range(7)]
    mean_film = np.mean([row(i, seed=1)["image"][:, :, 0] / 255 for i in range(12)], axis=0)
    errors = {"model": 0.0, "film_mean": 0.0, "mean_film": 0.0}
    pixels = 0
    for f in films:
        film = f["image"][:, :, 0] / 255
        target = np.repeat(np.repeat(f["target"].reshape(8, 8), 4, 0), 4, 1)
        errors["model"] += ((f["reconstruction"][:, :, 0] - film)[target] ** 2).sum()
        errors["film_mean"] += ((film[:28].mean() - film)[target] ** 2).sum()
        errors["mean_film"] += ((mean_film - film)[target] ** 2).sum()
        pixels += target.sum()
    assert metrics["rows"] == 7 and metrics["hidden_pixels"] == pixels
    for name, value in errors.items():
        assert metrics[f"mse_{name}"] == pytest.approx(value / pixels, rel=1e-9)
    assert metrics["gaussian_width_patches"] in WIDTHS
    best = metrics["best_baseline"]
    assert metrics[f"mse_{best}"] == min(v for k, v in metrics.items()
                                         if k.startswith("mse_") and k != "mse_model")  # fmt: skip

    # The table can be computed again from the file.
    lines = list(csv.DictReader(io.StringIO(predictions)))
    assert [int(line["index"]) for line in lines] == list(range(7))
    again = sum(float(line["sse_model"]) for line in lines) / pixels
    assert again == pytest.approx(metrics["mse_model"], rel=1e-8)


def test_gaussian_fill():
    film = np.outer(np.linspace(0.2, 0.8, 40), np.ones(40))
    visible = np.zeros((40, 40), bool)
    visible[::4] = True
    fill = gaussian_fill(film, visible, 2.0)
    assert np.abs(fill - film)[8:-8].max() < 0.01
    # Hidden pixels do not matter, and far away the visible mean stands.
    np.testing.assert_array_equal(gaussian_fill(np.where(visible, film, 9.0), visible, 2.0), fill)
    corner = np.zeros((40, 40), bool)
    corner[0, 0] = True
    assert gaussian_fill(film, corner, 1.0)[39, 39] == pytest.approx(0.2)


def test_a_model_that_is_given_statistics_is_compared_with_them():
    evaluator = Reconstruction()
    metrics, _ = evaluator.evaluate(splits(given=True))
    assert {k for k in metrics if k.startswith("mse_")} == {"mse_model", "mse_patch_mean"}
    text = evaluator.table(metrics)
    assert "given each hidden patch's true mean" in text and "training film" not in text


def test_pictures_show_what_they_say(tmp_path):
    from PIL import Image

    films = [row(i) for i in range(2)]
    films[0]["region"][16:48, 16:48] = 1
    Reconstruction().draw(films, tmp_path / "a" / "page.png", title="two films")
    page = np.asarray(Image.open(tmp_path / "a" / "page.png"))
    panel, gap, head = 224, 8, 60
    assert page.shape == (head + 2 * (panel + gap), gap + 5 * (panel + gap), 3)

    def cut(row, column):
        y, x = head + row * (panel + gap), gap + column * (panel + gap)
        return page[y : y + panel, x : x + panel].astype(float)

    orange = (cut(0, 1)[..., 0] > 240) & (cut(0, 1)[..., 2] < 20)
    assert orange.sum() > 300 and not ((cut(1, 1)[..., 0] > 240) & (cut(1, 1)[..., 2] < 20)).any()
    # The middles of patches: at their edges the resized panel rings.
    middle = np.zeros((28, 28), bool)
    middle[9:19, 9:19] = True
    hidden, seen, unscored = (
        np.kron(patches.reshape(8, 8), middle).astype(bool)
        for patches in (films[0]["hidden"], ~films[0]["hidden"], ~films[0]["target"])
    )
    blue = np.array([51, 76.5, 122.4])
    assert np.abs(cut(0, 2)[hidden] - blue).mean() < 6, "hidden patches are blue"
    assert np.abs(cut(0, 4)[unscored] - blue).mean() < 6, "and so is what is not scored"
    assert np.abs(cut(0, 3) - cut(0, 0))[unscored].mean() < 6, "the film stands without a target"
    assert np.abs(cut(0, 2) - cut(0, 0))[seen].mean() < 6, "visible ones are the film"
