"""CheXmask's files as given masks: the right runs for the right film."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep.build import main
from data_prep.given import given_name, read_given
from data_prep.inputs import mask_digest
from tests.data_prep import trees
from tests.data_prep.trees import chestxray14, chexpert, read, table
from xmae_jax.data.film import FilmError
from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.records import DataError, Records, decode_mask


def runs(mask):
    """Write a mask as its authors' description says: start from 1, length, row by row."""
    flat, out, index = mask.ravel(), [], 0
    while index < flat.size:
        if flat[index]:
            end = index
            while end < flat.size and flat[end]:
                end += 1
            out += [index + 1, end - index]
            index = end
        index += 1
    return " ".join(map(str, out))


HEADER = "Dice RCA (Max),Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width".split(
    ","
)


@pytest.fixture
def lungs():
    rng = np.random.default_rng(0)
    left, right = np.zeros((2, 23, 17), bool)
    left[3:20, 2:7], right[4:21, 9:17] = rng.random((17, 5)) < 0.8, True
    return left, right


def chexmask(path, column, *rows, size=(23, 17)):
    """Write rows of name, Dice, left and right runs; landmarks take several lines, as theirs do."""
    table(
        path,
        [column, *HEADER],
        *(
            [name, "0.9", dice, "[[ 1 2]\n [3 4]]", left, right, "", *size]
            for name, dice, left, right in rows
        ),
    )


def test_chexmask_is_given(tmp_path, lungs):
    left, right = map(runs, lungs)
    path = tmp_path / "CheXpert.csv"
    prefix = "CheXpert-v1.0-small/train/patient0000"
    good = (f"{prefix}1/study1/view1_frontal.jpg", "0.7", left, right)
    poor = (f"{prefix}2/study1/view1_frontal.jpg", "0.69", left, right)
    gone = (f"{prefix}9/study1/view1_frontal.jpg", "0.9", left, right)
    chexmask(path, "Path", gone, poor, good)
    inputs = read("chexpert", chexpert(tmp_path / "in"), masks=path)
    (film,) = inputs.masks
    assert inputs.rows[film].patient == "chexpert:patient00001" and path in inputs.tables
    np.testing.assert_array_equal(read_given(inputs.masks[film]), lungs[0] | lungs[1])
    assert given_name(inputs.masks[film], "x") == inputs.rows[film].mask_source == "chexmask"
    assert inputs.rows[film].mask_licence == "CC-BY-4.0"
    assert len(mask_digest(inputs.masks[film])) == 64
    assert inputs.notes == (
        "CheXmask: 1 masks, 1 left out for a Dice below 0.7, 1 rows without a film",
    )


def test_chexmask_joins_by_the_last_part_of_a_name(tmp_path, lungs):
    mimic = trees.mimic(tmp_path / "mimic")
    path = tmp_path / "MIMIC-CXR-JPG.csv"
    chexmask(path, "dicom_id", ("aaa-1", "0.8", runs(lungs[0]), ""))
    inputs = read("mimic-cxr-jpg", mimic, masks=path)
    (mask,) = inputs.masks.values()
    np.testing.assert_array_equal(read_given(mask), lungs[0])
    shutil.move(path, tmp_path / "in.csv")
    with pytest.raises(FilmError, match="no mask"):
        read_given(mask)


@pytest.mark.parametrize(
    "bad", ["0 5", "1 5 7", "-3 5", "380 20", "9 -2", "a b", "1 99999999999999999999"]
)
def test_runs_that_leave_the_film_are_no_mask(tmp_path, bad):
    chestxray14(tmp_path, patients=12)
    chexmask(tmp_path / "m.csv", "Image Index", ("00000001_000.png", "0.8", bad, "1 2"))
    (mask,) = read("chestx-ray14", tmp_path, masks=tmp_path / "m.csv").masks.values()
    with pytest.raises(FilmError, match="a row of CheXmask is no mask"):
        read_given(mask)


@pytest.mark.parametrize(
    "size", [(0, 17), (-23, -17), (10**6, 10**6), ("x", 17), ("inf", 1), ("", "")]
)
def test_sizes_that_no_film_has_are_no_mask(tmp_path, size):
    chestxray14(tmp_path, patients=12)
    chexmask(tmp_path / "m.csv", "Image Index", ("00000001_000.png", "0.8", "", ""), size=size)
    (mask,) = read("chestx-ray14", tmp_path, masks=tmp_path / "m.csv").masks.values()
    with pytest.raises(FilmError, match="a row of CheXmask is no mask"):
        read_given(mask)


@pytest.mark.parametrize(
    ("column", "rows", "part"),
    [
        ("Picture", [("00000001_000.png", "0.8", "", "")], "line 1: none of the columns dicom_id"),
        (
            "Image Index",
            [("00000001_000.png", "good", "", "")],
            "line 2, column Dice RCA .Mean.: not",
        ),
        (
            "Image Index",
            [("00000001_000.png", "0.8", "", "")] * 2,
            "line 4, column Image Index: a sec",
        ),
    ],
)
def test_chexmask_that_is_broken_is_refused(tmp_path, column, rows, part):
    chestxray14(tmp_path, patients=12)
    chexmask(tmp_path / "m.csv", column, *rows)
    with pytest.raises(DataError, match=part):
        read("chestx-ray14", tmp_path, masks=tmp_path / "m.csv")


def test_a_data_set_becomes_shards(tmp_path, monkeypatch, lungs):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    names = chestxray14(tmp_path / "in", patients=12)
    for index, path in enumerate(sorted((tmp_path / "in").rglob("*.png"))):
        film = np.random.default_rng(index).integers(20, 60, (92, 68), np.uint8)
        Image.fromarray(film).save(path)
    masks = tmp_path / "ChestX-Ray8.csv"
    chexmask(masks, "Image Index", *((name, "0.9", *map(runs, lungs)) for name in names[:8]))
    command = f"--adapter chestx-ray14 --input {tmp_path / 'in'} --output {tmp_path / 'out'}"
    more = ["--size", "96", "--workers", "1", "--lungs", "given", "--masks", str(masks)]
    assert main([*command.split(), *more]) == 0
    records = {split: list(Records(tmp_path / "out", split)) for split in ("train", "test")}
    assert len(records["test"]) == 20  # patients 3 to 12
    films = [film for of in records.values() for film in of]
    sources = [film["mask_source"] for film in films]
    assert sources.count("given:chexmask") == 8
    stored = next(film for film in films if film["lung_mask"])
    given = (lungs[0] | lungs[1]).mean()
    assert abs(decode_mask(stored["lung_mask"]).mean() - given * 68 / 92) < 0.02
    effusion = [film["labels"][FINDINGS.index("Pleural Effusion")] for film in films]
    assert effusion.count(1) == 8 and effusion.count(0) == len(films) - 8
    assert {film["source"] for film in films} == {"ChestX-ray14"}
