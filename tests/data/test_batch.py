"""Views and loaders: geometry, and the same bytes from any worker and any start."""

import io

import numpy as np
import pytest
from PIL import Image

from xmae_jax.data import transforms
from xmae_jax.data.batch import EveryRow, LoadStep, loader, row_rng
from xmae_jax.data.plan import Plan
from xmae_jax.data.records import Records
from xmae_jax.data.transforms import WHOLE, Box
from xmae_jax.data.views import FilmView

VIEW = FilmView(image_size=64, grid=(8, 8), contour_region="lungs", crop_scale=(0.5, 1.0))


def test_film_and_mask_stay_together():
    # A bright disc and its mask: after any crop the mask still covers the bright part.
    y, x = np.mgrid[:200, :160]
    disc = (y - 90) ** 2 + (x - 70) ** 2 < 40**2
    film = np.where(disc, 200, 20).astype(np.uint8)
    draw = np.random.default_rng(0)
    for _ in range(20):
        crop = transforms.random_crop(draw, WHOLE, scale=(0.3, 1.0))
        small = transforms.resize_film(film, crop, 128) > 110
        mask = transforms.resize_mask(disc, crop, 128)
        assert (small != mask).mean() < 0.02


def test_crops_stay_in_the_film_and_keep_their_scale():
    valid, draw = Box(0.1, 0.0, 0.8, 1.0), np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        crop = transforms.random_crop(draw, valid, scale=(0.2, 1.0))
        assert crop.y0 >= 0.1 - 1e-9 and crop.x0 >= 0 and crop.y1 <= 0.8 + 1e-9
        assert crop.x1 <= 1 + 1e-9
        height, width = crop.y1 - crop.y0, crop.x1 - crop.x0
        areas.append(height * width / 0.7)
        ratios.append(width / height)
        seen = valid.seen_through(crop)
        np.testing.assert_allclose(seen, (0, 0, 1, 1), atol=1e-6)
    assert 0.2 <= min(areas) < 0.25 and 0.9 < max(areas) <= 1 + 1e-9
    assert min(ratios) < 0.8 and max(ratios) > 1.25


def test_valid_box_of_an_uncropped_view():
    box = Box(0.25, 0.0, 0.75, 1.0)
    assert box.seen_through(WHOLE) == box
    assert box.seen_through(Box(0.5, 0.0, 1.0, 1.0)) == (0.0, 0.0, 0.5, 1.0)


def test_resize_keeps_orientation():
    film = np.zeros((64, 64), np.uint8)
    film[:16, 32:] = 255
    small = transforms.resize_film(film, Box(0, 0.5, 1, 1), 32)
    assert small[:8].mean() > 240 and small[8:].mean() < 10
    assert Image.fromarray(small).size == (32, 32)


def steps(shards, *, first, last, workers=0, threads=2, rows=slice(None), view=VIEW):
    records = Records(shards, "train")
    plan = Plan(seed=1, sizes=(len(records),), counts=(6,), digests=(records.digest,))
    load = LoadStep(plan.ids, [records], view, 1, rows)
    return list(loader(load, first=first, last=last, workers=workers, threads=threads))


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_any_threads_hosts_and_start_give_the_same_bytes(shards):
    whole = steps(shards, first=0, last=5)
    assert whole[0]["image"].shape == (6, 64, 64, 1) and whole[0]["image"].dtype == np.uint8
    assert whole[0]["lung"].shape == (6, 64, 64) and whole[0]["lung"].max() == 1
    same(steps(shards, first=0, last=5, threads=1), whole)
    same(steps(shards, first=3, last=5), whole[3:])
    left, right = (steps(shards, first=0, last=5, rows=r) for r in (slice(0, 2), slice(2, 6)))
    same(
        [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(left, right, strict=True)],
        whole,
    )


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(shards, tmp_path):
    # Grain starts workers with absl flags, so a program of its own runs them.
    import subprocess
    import sys

    from tests.conftest import ROOT

    program = f"""
import sys
from absl import flags
import numpy as np
from tests.data.test_batch import same, steps
if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    whole = steps({str(shards)!r}, first=0, last=5)
    for workers in (1, 2, 4):
        same(steps({str(shards)!r}, first=0, last=5, workers=workers), whole)
    print("same")
"""
    script = tmp_path / "workers.py"
    script.write_text(program)
    out = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT, env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0 and "same" in out.stdout, out.stderr[-2000:]


def test_every_row_once():
    for size, limit in (
        ((1,), 99),
        ((7,), 99),
        ((8,), 8),
        ((3, 5), 99),
        ((9, 9), 12),
        ((90, 6), 8),
    ):
        ids = EveryRow(size, 4, limit)
        seen = np.concatenate([ids(step) for step in range(ids.steps)])
        real = [tuple(row) for row in seen[seen[:, 0] >= 0].tolist()]
        every = [(s, i) for s, n in enumerate(size) for i in range(n)]
        assert real == sorted(set(real)) and set(real) <= set(every)
        assert len(real) == min(len(every), limit)
        assert len(seen) == 4 * ids.steps and len(seen) - len(real) < 4
    assert {source for source, _ in EveryRow((90, 30), 4, 8)(1).tolist()} == {0, 1}


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def ellipse(y, x, height, width):
    rows, columns = np.mgrid[:200, :200]
    return ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1


@pytest.mark.parametrize("crop_scale", [None, (0.3, 0.8)])
@pytest.mark.parametrize("region", ["lungs", "hull"])
def test_a_view_cuts_film_contour_and_box_alike(region, crop_scale):
    # The film lies off-centre in its square, brighter than the padding; lungs are brighter still.
    film, lung, hull = (
        np.zeros((200, 200), np.uint8),
        ellipse(90, 60, 40, 25),
        ellipse(95, 80, 60, 50),
    )
    film[20:180, 10:140] = 60
    film[hull] = 140
    film[lung] = 250
    record = {
        "image": png(film),
        "lung_mask": png(lung),
        "lung_hull": png(hull),
        "valid_box": np.array([20, 10, 180, 140], np.int32),
    }
    view = FilmView(image_size=128, grid=(8, 8), contour_region=region, crop_scale=crop_scale)
    for row in range(8):
        seen = view(record, row_rng(0, 0, row))
        image = seen["image"][:, :, 0].astype(int)
        assert seen["lung"].shape == (64, 64) and seen["image"].dtype == np.uint8
        inside = np.kron(seen["lung"], np.ones((2, 2))).astype(bool)
        wanted = image > (195 if region == "lungs" else 100)
        assert (inside != wanted).mean() < 0.03
        rows, columns = (np.arange(128) + 0.5) / 128, (np.arange(128) + 0.5) / 128
        y0, x0, y1, x1 = seen["box"]
        box = ((rows > y0) & (rows < y1))[:, None] & ((columns > x0) & (columns < x1))
        assert (box != (image > 30)).mean() < 0.02
        assert crop_scale is None or box.all()


def test_a_film_without_a_mask_has_an_empty_contour():
    record = {"image": png(np.full((64, 64), 9, np.uint8)), "lung_mask": None, "lung_hull": None,
              "valid_box": np.array([0, 0, 64, 64])}  # fmt: skip
    assert not VIEW(record, row_rng(0, 0, 0))["lung"].any()


def test_random_draws_of_a_row_are_its_own():
    a, b = row_rng(0, 5, 3).random(4), row_rng(0, 5, 3).random(4)
    np.testing.assert_array_equal(a, b)
    assert (a != row_rng(0, 5, 4).random(4)).all() and (a != row_rng(0, 6, 3).random(4)).all()
