"""The manifest: whatever is wrong with the files of a data set is told before a run begins."""

import json
import os
import shutil

import numpy as np
import pytest

from xmae_jax.data import manifest
from xmae_jax.data.manifest import DataError, load_manifest, write_manifest
from xmae_jax.data.records import Records

TRAIN, VAL, TEST = (
    f"films-{split}.array_record-00000-of-00001" for split in ("train", "val", "test")
)


@pytest.fixture
def copy(shards, tmp_path):
    """Return a copy of the shards that a test may damage; val and test have equal sizes."""
    directory = shutil.copytree(shards, tmp_path / "copy")
    assert (directory / VAL).stat().st_size == (directory / TEST).stat().st_size
    return directory


def cut(share):
    def damage(directory):
        path = directory / TRAIN
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def missing(directory):
    (directory / TRAIN).unlink()


def swapped(directory):
    (directory / VAL).rename(directory / "aside")
    (directory / TEST).rename(directory / VAL)
    (directory / "aside").rename(directory / TEST)


def pipe(directory):
    missing(directory)
    os.mkfifo(directory / TRAIN)


def folder(directory):
    missing(directory)
    (directory / TRAIN).mkdir()


def extra(directory):
    shutil.copy(directory / TRAIN, directory / f"{TRAIN}-of-more")


def zeroed(directory):
    with (directory / TRAIN).open("r+b") as file:
        file.write(bytes(2048))


def overwritten(directory):
    shutil.copy(directory / VAL, directory / TEST)


def relisted(directory, **change):
    """Write a manifest, right by its digest, that lists the shard VAL once more."""
    content = load_manifest(directory)
    entry = next(entry for entry in content["files"] if entry["file"] == VAL)
    content["files"].append({**entry, **change})
    write_manifest(directory, content)


def doubled(directory):
    shutil.copy(directory / VAL, directory / f"{VAL}-again")
    relisted(directory, file=f"{VAL}-again")


# Damage -> the shards that a message is to name, and part of what it says.
DAMAGES = {
    cut(0): ([TRAIN], "has 0 bytes, the manifest says"),
    cut(0.3): ([TRAIN], "bytes, the manifest says"),
    cut(0.5): ([TRAIN], "bytes, the manifest says"),
    cut(0.9): ([TRAIN], "bytes, the manifest says"),
    cut(0.999): ([TRAIN], "bytes, the manifest says"),
    missing: ([TRAIN], "is missing"),
    swapped: ([VAL, TEST], "does not begin as the manifest says"),
    overwritten: ([TEST], "does not begin as the manifest says"),
    zeroed: ([TRAIN], "does not begin as the manifest says"),
    pipe: ([TRAIN], "is no plain file"),
    folder: ([TRAIN], "is no plain file"),
    extra: ([f"{TRAIN}-of-more"], "is not in the manifest"),
    relisted: ([VAL], "is listed twice"),
    doubled: ([f"{VAL}-again"], f"has the same contents as {VAL}"),
}
damages = pytest.mark.parametrize(
    ("damage", "names", "part"), [(damage, *told) for damage, told in DAMAGES.items()]
)


@damages
def test_a_wrong_shard_of_any_split_stops_a_run(copy, damage, names, part):
    for split in ("train", "val"):
        Records(copy, split)
    damage(copy)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=part) as caught:
            Records(copy, split)
        assert all(f"{copy / name}: " in str(caught.value) for name in names)


def test_of_many_wrong_shards_the_first_are_named(copy):
    for index in range(9):
        (copy / f"odd.array_record-{index}").touch()
    with pytest.raises(DataError, match="9 files are wrong in all") as caught:
        Records(copy, "train")
    assert str(caught.value).count("odd") == 3


def test_files_that_are_no_shards_are_left_alone(copy):
    (copy / "notes.txt").write_text("mine")
    Records(copy, "train")


def test_a_start_reads_only_the_head_of_each_shard(copy):
    path = copy / TRAIN
    with path.open("r+b") as file:
        file.seek(manifest.HEAD)
        file.write(bytes(1))
    Records(copy, "train")


def test_no_flipped_bit_of_a_manifest_passes(copy):
    path = copy / manifest.MANIFEST
    data, content = path.read_bytes(), load_manifest(copy)
    draw = np.random.default_rng(0)
    refused = 0
    for at in draw.integers(0, len(data), 400):
        flipped = bytearray(data)
        flipped[at] ^= 1 << draw.integers(8)
        path.write_bytes(flipped)
        try:
            assert load_manifest(copy) == content
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 390


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "no manifest"),
        ("{", "unreadable"),
        ("[]", "unreadable"),
        ("\xff", "unreadable"),
        ("[" * 100_000, "unreadable"),
        ("{}", "unreadable"),
        (json.dumps({"format": 3, "files": []}), "older version; run data_prep.build again"),
        (json.dumps({"format": 99, "files": []}), "format 99"),
        (json.dumps({"format": 4, "files": []}), "edited since it was written"),
    ],
)
def test_an_unusable_manifest_is_bad_data(copy, text, part):
    path = copy / manifest.MANIFEST
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{manifest.MANIFEST}: .*{part}"):
        Records(copy, "train")


def test_a_pipe_for_a_manifest_does_not_block(copy):
    (copy / manifest.MANIFEST).unlink()
    os.mkfifo(copy / manifest.MANIFEST)
    with pytest.raises(DataError, match="no manifest"):
        load_manifest(copy)
