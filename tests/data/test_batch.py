"""Views and loaders: geometry, and the same bytes from any worker and any start."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from xmae_jax.data import transforms
from xmae_jax.data.batch import EveryRow, LoadStep, loader, row_rng
from xmae_jax.data.plan import Plan
from xmae_jax.data.records import DataError, Records, encode_image
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


@pytest.mark.parametrize("size", [96, 48])
def test_both_ways_to_resize_keep_every_edge_in_its_place(size):
    # Enlarged and shrunk: a ramp stays a ramp from border to border.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 3, (64, 64)).copy()
    small = transforms.resize_film(ramp, WHOLE, size)
    middle = 3 * ((np.arange(size) + 0.5) * 64 / size - 0.5)
    assert np.abs(small - middle[:, None]).max() < 2
    into = np.zeros((size, size), np.uint8)
    np.testing.assert_array_equal(transforms.resize_film(ramp, WHOLE, size, into), small)


class InMemory(Records):
    """Records that lie in no shard."""

    digest = ""

    def __init__(self, records):
        self.records = records

    def __getitem__(self, index):
        return self.records[index]


@pytest.mark.parametrize("crop_scale", [None, (0.3, 0.8)])
@pytest.mark.parametrize("image_size", [512, 640, 200])
def test_a_batch_holds_what_the_view_gives_of_each_row(image_size, crop_scale):
    # Films straight into their rows, larger or smaller ones by way of another array.
    draw = np.random.default_rng(0)
    rough = [Image.fromarray(draw.integers(0, 256, (9, 9), np.uint8)) for _ in range(4)]
    films = [np.asarray(picture.resize((512, 512), Image.Resampling.BICUBIC)) for picture in rough]
    records = [
        {"image": encode_image(film), "lung_hull": None, "valid_box": [0, 0, 512, 400]}
        for film in films
    ]
    view = FilmView(image_size, (8, 8), "hull", crop_scale)
    ids = np.array([[0, i] for i in (2, 0, 3, 1)], np.int32)
    batch = LoadStep(lambda _: ids, [InMemory(records)], view, 1, slice(None), skip=False)(5)
    for row, (_, index) in enumerate(ids):
        alone = view(records[index], row_rng(1, 5, row))
        for name, value in alone.items():
            np.testing.assert_array_equal(batch[name][row], value, err_msg=name)
        if crop_scale is None and image_size == 512:
            assert np.abs(batch["image"][row, :, :, 0].astype(int) - films[index]).mean() < 2


def load_step(records, *, rows=slice(None), view=VIEW, skip=False):
    plan = Plan(seed=1, sizes=(len(records),), counts=(8,), digests=(records.digest,))
    return LoadStep(plan.ids, [records], view, 1, rows, skip)


def steps(load, *, first, last, workers=0, threads=2):
    return list(loader(load, first=first, last=last, workers=workers, threads=threads))


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_any_threads_and_start_give_the_same_bytes(shards):
    load = load_step(Records(shards, "train"))
    whole = steps(load, first=0, last=5)
    assert whole[0]["image"].shape == (8, 64, 64, 1) and whole[0]["image"].dtype == np.uint8
    assert whole[0]["lung"].shape == (8, 64, 64) and whole[0]["lung"].max() == 1
    same(steps(load, first=0, last=5, threads=1), whole)
    same(steps(load, first=3, last=5), whole[3:])


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_share_a_batch(shards, hosts):
    def parts(load, step):
        size = 8 // hosts
        cut = [slice(start, start + size) for start in range(0, 8, size)]
        made = [dataclasses.replace(load, rows=rows)(step) for rows in cut]
        return {name: np.concatenate([part[name] for part in made]) for name in made[0]}

    load = load_step(Records(shards, "train"))
    for step in range(4):
        same([parts(load, step)], [load(step)])
    # The last batch of an evaluation: hosts may have nothing but padding.
    load = dataclasses.replace(load, ids=EveryRow((9,), 8, 9))
    split, whole = parts(load, 1), load(1)
    assert split["mask"].tolist() == [True] + [False] * 7
    same([{name: array[:1] for name, array in split.items()}],
         [{name: array[:1] for name, array in whole.items()}])  # fmt: skip
    np.testing.assert_array_equal(split["id"], whole["id"])


def damaged(shards, directory, wanted):
    """Copy shards, open the train split and damage some of its records."""
    records = Records(shutil.copytree(shards, directory), "train")
    path = records.directory / "films-train.array_record-00000-of-00001"
    data = bytearray(path.read_bytes())
    for index in wanted:
        head = Records(shards, "train")[index]["image"][:200]
        data[data.index(head) + 60] ^= 8
    path.write_bytes(data)
    return records


class Junk(Records):
    """A split with records that are whole, but hold no picture."""

    wanted: tuple[int, ...] = (4,)

    def __getitem__(self, index):
        junk = {"image": b"no"} if index in self.wanted else {}
        return {**super().__getitem__(index), **junk}


@pytest.mark.parametrize("kind", ["bytes", "picture"])
def test_an_unreadable_record_is_named_or_skipped(shards, tmp_path, kind):
    bad = Junk(shards, "train") if kind == "picture" else damaged(shards, tmp_path / "copy", [4])
    sound = load_step(Records(shards, "train"))
    step, row = next(
        (step, row) for step in range(9) for row, (_, i) in enumerate(sound.ids(step)) if i == 4
    )
    name = f"{bad.directory}/films-train.array_record-00000-of-00001: record 4 is damaged"
    with pytest.raises(DataError, match=name):
        load_step(bad)(step)
    with pytest.raises(DataError, match=name):
        steps(load_step(bad), first=step, last=step + 1)
    # A host that has nothing else takes another's row in its place.
    alone = load_step(bad, rows=slice(row, row + 1), skip=True)(step)
    assert alone["mask"].tolist() == [False] and alone["id"].tolist() == [[0, 4]]
    other = load_step(bad, rows=slice(0, 2), skip=True)(step)["image"][0 if row else 1]
    np.testing.assert_array_equal(alone["image"][0], other)

    (found,) = steps(load_step(bad, skip=True), first=step, last=step + 1)
    whole = sound(step)
    others = np.arange(8) != row
    np.testing.assert_array_equal(found["mask"], others)
    np.testing.assert_array_equal(found["id"], whole["id"])
    for array, expected in ((found[name], whole[name]) for name in ("image", "lung", "box")):
        np.testing.assert_array_equal(array[others], expected[others])
        np.testing.assert_array_equal(array[row], expected[0 if row else 1])


def test_padding_alone_meets_a_damaged_record(shards):
    bad = Junk(shards, "train")
    bad.wanted = (0,)
    load = load_step(bad, rows=slice(4, 8), skip=True)
    load = dataclasses.replace(load, ids=EveryRow((3,), 8, 3))
    batch = load(0)
    assert not batch["mask"].any() and (batch["id"] == -1).all()
    np.testing.assert_array_equal(
        batch["image"][3], dataclasses.replace(load, rows=slice(1, 2))(0)["image"][0]
    )
    with pytest.raises(DataError, match="record 0 is damaged"):
        dataclasses.replace(load, skip=False)(0)


def test_nothing_readable_is_bad_data(shards):
    bad = Junk(shards, "train")
    bad.wanted = tuple(range(len(bad)))
    with pytest.raises(DataError, match="is damaged"):
        load_step(bad, skip=True)(0)


def run(tmp_path, body):
    """Run a program: Grain starts workers with absl flags, and not from within pytest."""
    lines = ["import sys", "from absl import flags", "from tests.data.test_batch import *\n"]
    script = tmp_path / "program.py"
    script.write_text("\n".join(lines) + body)
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes(shards, tmp_path):
    program = run(tmp_path, f"""
if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    load = load_step(damaged({str(shards)!r}, {str(tmp_path / "copy")!r}, [2, 4, 19]), skip=True)
    whole = steps(load, first=0, last=6)
    assert sum(batch["mask"].sum() for batch in whole) < 48
    for workers, first in ((1, 0), (2, 0), (4, 0), (1, 3), (2, 3)):
        same(steps(load, first=first, last=6, workers=workers), whole[first:])
    bad = dataclasses.replace(load, skip=False)
    try:
        steps(bad, first=0, last=6, workers=2)
    except DataError as error:
        assert "is damaged" in str(error) and "Traceback" not in str(error), error
        print("same")
""")  # fmt: skip
    out, errors = program.communicate()
    assert program.returncode == 0 and "same" in out, errors[-2000:]


ENDINGS = """
import multiprocessing, os, signal, time
from multiprocessing import shared_memory
from xmae_jax.data.batch import LoaderError

# Names in /dev/shm by which the parent knows this program's.
shared_memory._SHM_NAME_PREFIX = "/{name}_"
multiprocessing.current_process()._config["semprefix"] = "/{name}"

def main():
    load = load_step(Records({shards!r}, "train"))
    batches = loader(load, first=0, last=20, workers=2, threads=1)
    for count, _ in zip(range(4), batches):
        pass
    time.sleep(1)
    {ending}
    for _ in batches:
        pass
    del _
    time.sleep(0.5)  # Grain frees shared memory in a thread

def stop(number):
    signal.signal(number, lambda *_: print("asked to stop"))
    os.killpg(0, number)

if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    try:
        main()
    except LoaderError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("", ""),
        ("batches.close()", ""),
        ("os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)", "a loader process"),
        ("stop(signal.SIGINT)", "asked to stop"),
        ("stop(signal.SIGTERM)", "asked to stop"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
    ],
)
def test_nothing_is_left_behind(shards, tmp_path, ending, told):
    name = f"x{os.getpid()}"
    program = run(tmp_path, ENDINGS.format(name=name, shards=str(shards), ending=ending))
    started = time.monotonic()
    while program.poll() is None and not [n for n in os.listdir("/dev/shm") if name in n]:
        time.sleep(0.02)  # the names are used
    assert program.poll() is None
    out, errors = program.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert told in out
    if "SIGKILL" not in ending:
        assert not errors, errors
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(program.pid):
        time.sleep(0.1)
    assert not alive(program.pid)
    assert not [n for n in os.listdir("/dev/shm") if name in n]


def alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


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
