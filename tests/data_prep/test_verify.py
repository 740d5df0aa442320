"""The full check: every kind of damage is found, named and survived."""

import json
import shutil

import numpy as np
import pytest

from data_prep.verify import main
from tests.data.test_manifest import TRAIN, VAL, damages
from tests.data.test_records import assert_equal
from xmae_jax.data import records
from xmae_jax.data.index import INDEX
from xmae_jax.data.manifest import (
    DataError,
    describe,
    file_digest,
    load_manifest,
    write_manifest,
)
from xmae_jax.data.records import Records


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.fixture
def verify(copy, capsys):
    """Return a function that runs the command; it returns exit code and report."""

    def run():
        capsys.readouterr()
        code = main(["--data", str(copy)])
        report = json.loads(capsys.readouterr().out)
        assert (code == 0) == report["ok"] == (not report["problems"]) and code in (0, 65)
        return code, report

    return run


def named(report):
    return {(problem["file"], problem["record"]) for problem in report["problems"]}


def test_sound_shards_pass(verify, shards):
    code, report = verify()
    films = load_manifest(shards)["counts"]["films"]
    assert code == 0
    assert report == {"ok": True, "files": 3, "records": films, "problems": []}


@damages
def test_a_wrong_shard_is_named(copy, verify, damage, names, part):
    damage(copy)
    code, report = verify()
    assert code == 65
    assert {(name, None) for name in names} <= named(report)
    assert any(part in problem["problem"] for problem in report["problems"])


@pytest.mark.parametrize(
    "name", ["features.json", "dataset_info.json", "index.csv", "duplicates.csv", "report.html"]
)
def test_wrong_metadata_are_named(copy, verify, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    assert named(verify()[1]) == {(name, None)}
    (copy / name).unlink()
    assert named(verify()[1]) == {(name, None)}


@pytest.mark.parametrize("name", ["manifest.json", None])
def test_a_wrong_manifest_is_named(copy, verify, name):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace("96", "97"))
    if name is None:
        path.unlink()
    assert named(verify()[1]) == {("manifest.json", None)}


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.drill)])
def test_no_flipped_bit_passes(copy, verify, count):
    splits = load_manifest(copy)["files"]
    whole = {entry["file"]: list(Records(copy, entry["split"])) for entry in splits}
    draw = np.random.default_rng(1)
    told = narrowed = 0
    for number in range(count):
        entry = splits[number % len(splits)]
        source = Records(copy, entry["split"])  # opened before: a start may refuse the shard
        path = copy / entry["file"]
        sound = path.read_bytes()
        data = bytearray(sound)
        data[draw.integers(len(data))] ^= 1 << draw.integers(8)
        path.write_bytes(data)
        for index, expected in enumerate(whole[entry["file"]]):
            try:
                assert_equal(source[index], expected)
            except DataError as error:
                assert f"{path}: record {index} " in str(error)
                told += 1
        _, report = verify()
        assert (entry["file"], None) in named(report) and len({f for f, _ in named(report)}) == 1
        narrowed += len(named(report)) - 1
        path.write_bytes(sound)
    assert told and narrowed


@pytest.mark.drill
def test_zeroed_blocks_are_named(copy, verify):
    path = copy / TRAIN
    sound = path.read_bytes()
    for at in range(0, len(sound), 2048):
        if any(block := sound[at : at + 2048]):
            path.write_bytes(sound[:at] + bytes(len(block)) + sound[at + 2048 :])
            assert (TRAIN, None) in named(verify()[1])


def rewrite(directory, *made):
    """Put other records into VAL, with a manifest that is right about them."""
    count = records.write_shard(directory / VAL, map(records.encode, made))
    content = load_manifest(directory)
    place = [entry["file"] for entry in content["files"]].index(VAL)
    content["files"][place] = describe(directory / VAL, split="val", records=count)
    write_manifest(directory, content)


def test_wrong_records_are_named(copy, verify):
    good = list(Records(copy, "val"))
    train = Records(copy, "train")[0]
    small = records.encode_image(np.zeros((9, 9), np.uint8))
    bad = [
        ({**train, "id": "f" * 16}, "is of another split than val"),
        ({**train, "split": "val"}, f"has the id of {TRAIN}, record 0"),
        ({**good[0]}, f"has the id of {VAL}, record 0"),
        ({**good[0], "id": "a", "image": b"no"}, "a picture does not decode"),
        ({**good[0], "id": "b", "image": good[0]["image"][:-99]}, "a picture does not decode"),
        ({**good[0], "id": "c", "lung_mask": b"no"}, "a picture does not decode"),
        ({**good[0], "id": "d", "lung_hull": b"no"}, "a picture does not decode"),
        ({**good[0], "id": "e", "image": small}, "its film has 9 x 9 pixels, not 96"),
        ({**good[0], "id": "g", "image": good[0]["lung_mask"]}, "mode 1, not L"),
    ]
    rewrite(copy, *good, *(record for record, _ in bad))
    code, report = verify()
    assert code == 65
    found = [(problem["record"], problem["problem"]) for problem in report["problems"]]
    for number, (_, part) in enumerate(bad, start=len(good)):
        assert any(record == number and part in text for record, text in found), part
    text = json.dumps(report)
    assert not any(film[name] in text for film in good for name in ("id", "patient", "study"))


def test_a_wrong_count_is_named(copy, verify):
    content = load_manifest(copy)
    content["files"][0]["records"] += 1
    write_manifest(copy, content)
    _, report = verify()
    assert named(report) == {(TRAIN, None)}
    assert "records, the manifest says" in report["problems"][0]["problem"]


def index_problems(copy, verify, change):
    """Change the lines of index.csv, with a manifest that is right about it; return problems."""
    path, content = copy / INDEX, load_manifest(copy)
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(head, lines)))
    content["metadata"][INDEX] = file_digest(path)
    write_manifest(copy, content)
    code, report = verify()
    assert code == 65
    return {(p["file"], p["record"], p["problem"]) for p in report["problems"]}


def test_an_index_of_other_films_is_named(copy, verify):
    def swap(head, lines):
        lines[3], lines[5] = lines[5], lines[3]
        return [head, *lines]

    text = "is not the film of its line in index.csv"
    assert index_problems(copy, verify, swap) == {(TRAIN, 3, text), (TRAIN, 5, text)}


def test_an_index_of_other_patients_is_named(copy, verify):
    def change(head, lines):
        cells = lines[2].split(",")
        return [head, *lines[:2], ",".join([cells[0], "f" * 16, *cells[2:]]), *lines[3:]]

    text = "is not the film of its line in index.csv"
    assert index_problems(copy, verify, change) == {(TRAIN, 2, text)}


def test_an_index_of_another_length_is_named(copy, verify):
    content = load_manifest(copy)
    films, last = content["counts"]["films"], content["files"][-1]
    text = "has {} lines of films, the shards have {} records"
    assert index_problems(copy, verify, lambda head, lines: [head, *lines[:-1]]) == {
        (INDEX, None, text.format(films - 1, films)),
        (last["file"], last["records"] - 1, "is not the film of its line in index.csv"),
    }


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda head, lines: [head.replace("id", "name"), *lines], "columns of another version"),
        (lambda head, lines: [head, lines[0].replace(",96,", ",x,"), *lines[1:]], "no number"),
    ],
)
def test_an_unreadable_index_is_named(copy, verify, change, part):
    ((file, record, text),) = index_problems(copy, verify, change)
    assert file == INDEX and record is None and part in text


@pytest.mark.parametrize("arguments", [[], ["--data", "gone"], ["--data", ".", "--fix"], ["."]])
def test_usage_errors_exit_64(arguments, capsys):
    assert main(arguments) == 64
    out, err = capsys.readouterr()
    assert not out and err


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--data" in capsys.readouterr().out


def test_links_and_more_files_are_no_damage(copy, verify, tmp_path):
    shutil.move(copy / TRAIN, tmp_path / "elsewhere")
    (copy / TRAIN).symlink_to(tmp_path / "elsewhere")
    (copy / "notes.txt").write_text("mine")
    assert verify()[0] == 0
