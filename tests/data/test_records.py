"""Records on disk: what goes in comes out, in every reader, and damage is named."""

import io
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from xmae_jax.data import records
from xmae_jax.data.manifest import describe, load_manifest, write_manifest
from xmae_jax.data.records import FINDINGS, NO_REPORT, DataError, Record, Records, Report

COUNTS = {"train": (5, 4), "val": (3,)}


def record(index, split="train"):
    rng = np.random.default_rng(index)
    mask = np.zeros((40, 40), bool)
    mask[5 : 10 + index % 7, 8:30] = True
    labels = rng.choice(np.array([0, 1, -1, np.nan], np.float32), len(FINDINGS))
    return Record(
        image=records.encode_image(rng.integers(0, 256, (96, 96), np.uint8)),
        lung_mask=records.encode_mask(mask) if index % 2 else None,
        lung_hull=records.encode_mask(mask) if index % 2 else None,
        mask_source="heuristic" if index % 2 else "none",
        mask_quality=float(np.float32(0.7)) if index % 2 else 0.0,
        id=f"{index:016x}",
        patient="0" * 16,
        study="1" * 16,
        view="PA",
        sex="FM"[index % 2],
        age=float("nan") if index % 3 else 0.5 + index,
        source="made, für Tests",
        split=split,
        labels=labels.astype(np.float32),
        report=Report(
            findings="No effusion.", impression="", indication="Cough.", comparison="None."
        ),
        spacing=np.array([0.2, np.nan], np.float32),
        original_size=np.array([300, 200], np.int32),
        valid_box=np.array([0, 16, 96, 80], np.int32),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    entries, index = [], 0
    for split, counts in COUNTS.items():
        for shard, count in enumerate(counts):
            name = records.shard_name("made", split=split, index=shard, total=len(counts))
            made = (record(number, split) for number in range(index, index + count))
            assert records.write_shard(directory / name, map(records.encode, made)) == count
            entries.append(describe(directory / name, split=split, records=count))
            index += count
    metadata = records.write_tfds_metadata(
        directory, name="made", files=entries, labels=len(FINDINGS)
    )
    content = {"labels": list(FINDINGS), "files": entries, "size": 96, "metadata": metadata}
    write_manifest(directory, content)
    return directory


@pytest.fixture
def copy(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            assert found[name] == value or (value != value and found[name] != found[name]), name


def test_records_come_back_in_order(shards):
    train = Records(shards, "train")
    assert len(train) == 9 and train.labels == FINDINGS
    for index, found in enumerate(train):
        assert_equal(found, record(index))
    assert_equal(Records(shards, "val")[2], record(11, "val"))
    for index in (-1, 9):
        with pytest.raises(IndexError):
            train[index]


def test_equal_records_give_equal_bytes(shards, tmp_path):
    again = tmp_path / "again"
    records.write_shard(again, (records.encode(record(index)) for index in range(5)))
    assert again.read_bytes() == (shards / "made-train.array_record-00000-of-00002").read_bytes()


def test_tfds_reads_the_same(shards):
    tfds = pytest.importorskip("tensorflow_datasets")
    for split, counts in COUNTS.items():
        source = tfds.builder_from_directory(shards).as_data_source(split)
        assert len(source) == sum(counts)
        for theirs, ours in zip(source, Records(shards, split), strict=True):
            np.testing.assert_array_equal(
                theirs["image"][..., 0], records.decode_image(ours["image"])
            )
            assert len(theirs["lung_mask"]) == (ours["lung_mask"] is not None)
            for mask in theirs["lung_mask"]:
                drawn = np.asarray(mask)[..., 0] > 0
                np.testing.assert_array_equal(drawn, records.decode_mask(ours["lung_mask"]))
            assert theirs["source"].decode() == ours["source"]
            assert {name: text.decode() for name, text in theirs["report"].items()} == ours[
                "report"
            ]
            np.testing.assert_array_equal(theirs["labels"], ours["labels"])
            np.testing.assert_array_equal(theirs["valid_box"], ours["valid_box"])


def test_records_from_before_there_were_more_sections_are_read():
    made = record(1)
    old = dict(list(made["report"].items())[:2])
    found = records.decode(records.encode({**made, "report": old}))
    assert found["report"] == {**NO_REPORT, **old} and old["findings"]


def test_unknown_split_names_those_there_are(shards):
    with pytest.raises(ValueError, match="'test'.*train, val"):
        Records(shards, "test")


def test_damaged_record_is_named_and_never_silent(copy):
    shard = copy / "made-train.array_record-00001-of-00002"
    train = Records(copy, "train")  # opened before: a start refuses a shard of another head
    data = bytearray(shard.read_bytes())
    at = data.index(record(6)["image"]) + 50
    data[at] ^= 4
    shard.write_bytes(data)
    assert_equal(train[5], record(5))
    assert train.where(6) == f"{shard.name}, record 1"
    with pytest.raises(DataError, match=f"{shard}: record 1 "):
        train[6]


def test_digest_covers_its_split_only(shards, copy):
    before = {split: Records(shards, split).digest for split in COUNTS}
    assert len(set(before.values())) == 2
    manifest = load_manifest(copy)
    manifest["files"][-1]["sha256"] = "0" * 64
    write_manifest(copy, manifest)
    assert Records(copy, "train").digest == before["train"]
    assert Records(copy, "val").digest != before["val"]


def test_what_is_no_picture_is_bad_data():
    film, mask = record(1)["image"], record(1)["lung_mask"]
    for decode, data in ((records.decode_image, mask), (records.decode_mask, film)):
        for damaged in (b"no", data, film[:-99], mask[:30]):
            with pytest.raises(DataError, match="a picture "):
                decode(damaged)
    with pytest.raises(DataError, match="no film, but a report alone"):
        records.decode_image(b"")


def test_threads_share_a_reader(shards):
    train = Records(shards, "train")
    wanted = [index % 9 for index in range(400)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: train[index]["id"], wanted))
    assert found == [f"{index:016x}" for index in wanted]


def _ids(reader):
    return [found["id"] for found in reader]


def test_processes_reopen_their_files(shards):
    train = Records(shards, "train")
    expected = _ids(train)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_ids, (train,)) == expected


def test_small_films_are_lossless_and_large_ones_jpeg():
    smooth = np.add.outer(np.arange(600), np.arange(600)) // 5
    smooth = smooth.astype(np.uint8)
    assert records.encode_image(smooth).startswith(b"\xff\xd8")
    decoded = records.decode_image(records.encode_image(smooth))
    assert np.abs(decoded.astype(int) - smooth).max() <= 3
    small = smooth[:511, :511]
    np.testing.assert_array_equal(records.decode_image(records.encode_image(small)), small)


def test_masks_cost_one_bit_a_pixel():
    mask = np.random.default_rng(0).random((320, 320)) < 0.5
    data = records.encode_mask(mask)
    assert len(data) < 320 * 320 / 8 * 1.05
    np.testing.assert_array_equal(records.decode_mask(data), mask)
    for broken in (data[:-99], data[:200] + bytes(9) + data[209:]):
        with pytest.raises(DataError, match="does not decode"):
            records.decode_mask(broken)
    with pytest.raises(DataError, match="larger than 320 px"):
        records.decode_mask(records.encode_mask(np.ones((4, 321), bool)))


PROBE = """
import sys, time
from xmae_jax.data.records import Records
train = Records(sys.argv[1], "train")
list(train)
def seconds():
    start = time.process_time()
    list(train)
    return (time.process_time() - start) / len(train)
print(min(seconds() for _ in range(20)), *sys.modules)
"""


def test_reading_is_light_and_fast(shards):
    # In a process of its own, where no test hook checks every shape.
    command = [sys.executable, "-c", PROBE, str(shards)]
    seconds, *loaded = subprocess.check_output(command, text=True).split()
    assert not {"jax", "tensorflow_datasets", "tensorflow"} & set(loaded)
    assert float(seconds) < 1e-3  # 0.1 ms on an idle core


def test_jpeg_films_decode_to_pillows_pixels_or_not_at_all():
    film = np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8)
    data = records.encode_image(film)
    assert data.startswith(b"\xff\xd8")
    np.testing.assert_array_equal(
        records.decode_image(data), np.asarray(Image.open(io.BytesIO(data)))
    )
    colour = io.BytesIO()
    Image.fromarray(np.stack([film] * 3, axis=-1)).save(colour, "JPEG")
    for broken, what in (
        (data[:-999], "does not decode"),
        (data[:2] + b"no", "does not decode"),
        (colour.getvalue(), "of mode"),
    ):
        with pytest.raises(DataError, match=what):
            records.decode_image(broken)
