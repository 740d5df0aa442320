"""A film or a patient on both sides is found, named, and stops a run before it begins."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data_prep.build import main
from data_prep.duplicates import dropped, find_pairs
from tests.data_prep.test_build import table
from tests.runs import command, finish
from tests.test_configs import change
from xmae_jax import config as config_lib
from xmae_jax.data import leaks
from xmae_jax.data.index import (
    NEAR,
    Entry,
    index_of,
    near_pairs,
    perceptual_hash,
    read_entries,
)
from xmae_jax.data.manifest import DataError
from xmae_jax.tasks import train


def film(seed):
    """Draw a film of large random shapes, as unlike others as two patients are."""
    draw, grey = np.random.default_rng(seed), np.zeros((160, 150), np.float32)
    for side in (3, 6, 12, 24):  # structure of every size, as in an anatomy
        coarse = Image.fromarray(draw.normal(size=(side, side)).astype(np.float32) / side)
        grey += np.asarray(coarse.resize((150, 160), Image.Resampling.BICUBIC))
    return (255 * (grey - grey.min()) / np.ptp(grey)).astype(np.uint8)


def again(pixels):
    """Save a film as a JPEG of low quality at another size."""
    size = [side * 3 // 4 for side in pixels.shape[::-1]]
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=40)
    return out.getvalue()


def archive(folder, films, *, prefix="p"):
    """Write films as name -> (pixels or bytes, patient)."""
    folder.mkdir()
    for name, (pixels, _) in films.items():
        if isinstance(pixels, bytes):
            (folder / name).write_bytes(pixels)
        else:
            Image.fromarray(pixels).save(folder / name)
    rows = [(name, patient) for name, (_, patient) in films.items()]
    table(folder / "labels.csv", ("image", "patient_id"), *rows)


def build(folder, output, *extra, key="key"):
    sizes = ["--size", "96", "--workers", "1", "--lungs", "none"]
    standard = ["--input", folder, "--output", output, "--key", output.parent / key, *sizes]
    return main([str(part) for part in [*standard, *extra]])


def plain(count, *, start=0):
    return {f"{i}.png": (film(i), f"patient {i}") for i in range(start, start + count)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Build a set of 40 films of 40 patients, some in each split; return it and who is where."""
    folder = tmp_path_factory.mktemp("first")
    archive(folder / "films", plain(40))
    assert build(folder / "films", folder / "shards", "--id-map", folder / "map") == 0
    lines = (folder / "map").read_text().splitlines()[1:]
    names = {line.split(",")[0]: line.split("/")[-1] for line in lines}
    where = {names[e.id]: e.split for e in read_entries(folder / "shards")}
    return folder / "shards", where


def config_of(*paths, **changes):
    tree = change(data__path=[str(path) for path in paths], **changes)
    return config_lib.build(config_lib.Config, tree)


def member(where, split):
    return int(next(name for name, of in where.items() if of == split).removesuffix(".png"))


def other_split(where, split, patient):
    """Find a patient's name that hashes into a split."""
    from data_prep.splits import split_of

    return next(f"{patient}{i}" for i in range(1000) if split_of(f"{patient}{i}") == split)


PLANTS = {
    "nothing": (lambda i: {}, None),
    "copy": (lambda i: {"x.png": film(i)}, "a copy of one film on both sides"),
    "near copy": (lambda i: {"x.jpg": again(film(i))}, "a near copy of one film on both sides"),
}


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_films_stop_a_run(first, tmp_path, kind):
    shards, where = first
    plant, words = PLANTS[kind]
    held_out = other_split(where, "val", "other ")
    films = {name: (pixels, held_out) for name, pixels in plant(member(where, "train")).items()}
    archive(tmp_path / "films", plain(20, start=100) | films)
    (tmp_path / "key").write_bytes((shards.parent / "key").read_bytes())
    assert build(tmp_path / "films", tmp_path / "shards") == 0
    config = config_of(shards, tmp_path / "shards")
    if words is None:
        assert train.leaks_of(config) == {}
        return
    with pytest.raises(DataError, match=words) as error:
        train.leaks_of(config)
    planted = [e.id for e in read_entries(tmp_path / "shards") if e.split == "val"]
    assert any(name in str(error.value) for name in planted)
    allowed = config_of(shards, tmp_path / "shards", data__leaks="allow")
    assert train.leaks_of(allowed) == {kind: 1}


def test_a_patient_in_two_sets_stops_a_run(first, tmp_path, monkeypatch):
    shards, where = first
    i = member(where, "val")
    films = plain(20, start=100) | {"late.png": (film(999), f"patient {i}")}
    archive(tmp_path / "films", films)
    (tmp_path / "key").write_bytes((shards.parent / "key").read_bytes())
    monkeypatch.setattr("data_prep.splits.split_of", lambda patient: "val" if "101" in patient
                        else "train")  # fmt: skip
    assert build(tmp_path / "films", tmp_path / "shards") == 0
    with pytest.raises(DataError, match="one patient on both sides"):
        train.leaks_of(config_of(shards, tmp_path / "shards"))


def test_sets_of_two_keys_stop_a_run(first, tmp_path):
    shards, _ = first
    archive(tmp_path / "films", plain(20, start=100))
    assert build(tmp_path / "films", tmp_path / "shards", key="another") == 0
    with pytest.raises(DataError, match="different keys") as error:
        train.leaks_of(config_of(shards, tmp_path / "shards"))
    assert str(tmp_path / "shards") in str(error.value) and str(shards) in str(error.value)
    allowed = config_of(shards, tmp_path / "shards", data__leaks="allow")
    assert train.leaks_of(allowed) == {"other_keys": 1}


def test_main_exits_65_and_an_override_is_in_the_results(first, tmp_path):
    shards, where = first
    films = plain(40) | {"x.jpg": (again(film(member(where, "train"))), "x")}
    films["x.jpg"] = (films["x.jpg"][0], other_split(where, "val", "x"))
    archive(tmp_path / "films", films)
    assert build(tmp_path / "films", tmp_path / "shards") == 0
    line = command(tmp_path / "shards", tmp_path / "run", "--config.total_steps=2")
    code, out = finish(line)
    assert code == 65 and "a near copy of one film on both sides" in out
    assert not (tmp_path / "run/metrics.jsonl").exists()
    code, out = finish([*line, "--config.data.leaks=allow"])
    assert code == 0, out
    found = json.loads((tmp_path / "run/eval/reconstruction/step_2/metrics.json").read_text())
    assert found["leaks"] == {"near copy": 1}


def test_excluded_and_dropped_films_leave_no_leak(first, tmp_path, capsys):
    shards, where = first
    i = member(where, "train")
    val = other_split(where, "val", "x")
    films = plain(20, start=100) | {
        "copy.png": (film(i), val),
        "near.jpg": (again(film(i + 1)), val),
        "same patient.png": (film(999), f"patient {i}"),
        "again.png": (film(100), other_split(where, "val", "y")),
    }
    archive(tmp_path / "films", films)
    (tmp_path / "key").write_bytes((shards.parent / "key").read_bytes())
    extra = ["--exclude", shards / "manifest.json", "--duplicates", "drop"]
    assert build(tmp_path / "films", tmp_path / "shards", *extra) == 0
    rejected = (tmp_path / "shards/rejected.csv").read_text()
    assert "copy.png,excluded: copy in another data set" in rejected
    assert "near.jpg,excluded: near copy in another data set" in rejected
    assert "same patient.png,excluded: patient in another data set" in rejected
    assert "again.png" not in rejected and "100.png,copy of another film" in rejected
    assert len(read_entries(tmp_path / "shards")) == 20
    assert train.leaks_of(config_of(shards, tmp_path / "shards")) == {}
    assert build(tmp_path / "films", tmp_path / "shards", *extra) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert build(tmp_path / "films", tmp_path / "two", *extra[:2], key="other") == 65
    assert "different keys" in capsys.readouterr().err
    assert build(tmp_path / "films", tmp_path / "two", *extra[:2], "--allow-other-keys",
                 key="other") == 0  # fmt: skip
    kept = (tmp_path / "two/rejected.csv").read_text()
    assert "same patient" not in kept and "near.jpg" in kept


def test_near_pairs_are_those_of_all_pairs():
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**63, (700, 4)).astype(np.uint64)
    for far in range(0, 2 * NEAR):  # row i + 300 is row i with some bits turned
        turned = draw.choice(256, far, replace=False)
        row = hashes[far].copy()
        for bit in turned:
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        hashes[300 + far] = row
    expected = [(i, 300 + i, i) for i in range(NEAR + 1)]
    assert sorted(near_pairs(hashes)) == expected
    across = near_pairs(hashes[:300], hashes[300:])
    assert {(i, j + 300, n) for i, j, n in across} == set(expected)
    assert near_pairs(hashes[:300], ~hashes[300:]) == across  # inverted films
    assert near_pairs(hashes[:0]) == [] == near_pairs(hashes, hashes[:0])


def test_real_films_differ_and_their_copies_do_not(cxr):
    from xmae_jax.data.film import read_film

    paths = sorted((cxr / "images").iterdir())[::6]
    films = [read_film(path).pixels for path in paths]
    hashes = [perceptual_hash(pixels) for pixels in films]
    copies = [perceptual_hash(np.asarray(Image.open(io.BytesIO(again(p))))) for p in films]
    packed = [np.frombuffer(b"".join(map(bytes.fromhex, h)), np.uint64).reshape(-1, 4)
              for h in (hashes, copies)]  # fmt: skip
    assert near_pairs(packed[0]) == []
    found = near_pairs(*packed)
    assert all(i == j for i, j, _ in found) and len(found) > 0.9 * len(films)


def test_leaks_are_told_by_id_a_few_of_each_kind():
    def index(name, patients):
        made = index_of([], name=name, key="k")
        ids = tuple(f"{name}{i}" for i in range(len(patients)))
        pixels = tuple(f"{name}{i} px" for i in range(len(patients)))
        hashes = np.random.default_rng(len(name)).integers(0, 2**63, (len(ids), 4))
        return type(made)(name, "k", ids, tuple(patients), pixels, hashes.astype(np.uint64))

    found = leaks.find_leaks([index("a", "pqrst")], [index("bb", "xpqrs")])
    assert {leak.ids for leak in found} == {(f"a{i}", f"bb{i + 1}") for i in range(4)}
    told = leaks.describe(found)
    assert "a0 of a and bb1 of bb" in told and "4 pairs in all" in told and "bb4" not in told


def entry(i, *, split, pixels, phash, patient=None):
    made = dict.fromkeys(Entry._fields, "") | dict(
        bits=8, height=9, width=9, mask_quality=0.0, age=0.0
    )
    names = dict(id=f"{i:016x}", split=split, pixels=pixels, phash=phash.tobytes().hex())
    return Entry(**(made | names | dict(patient=patient or f"p{i}")))


def test_dropping_leaves_no_pair_of_three_or_more_copies():
    draw = np.random.default_rng(0)

    def turned(base, *, bits):
        row = base.copy()
        for bit in range(bits):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        return row

    a, b, c = draw.integers(0, 2**63, (3, 4)).astype(np.uint64)
    entries = [
        entry(0, split="train", pixels="a", phash=a),
        entry(1, split="train", pixels="a near", phash=turned(a, bits=15)),
        entry(2, split="train", pixels="c", phash=c, patient="p0"),  # the patient of a copy
        entry(3, split="val", pixels="a", phash=a),
        entry(4, split="test", pixels="a", phash=a),
        entry(5, split="test", pixels="b", phash=b),
        entry(6, split="test", pixels="b nearer", phash=turned(b, bits=12)),
        entry(7, split="test", pixels="b far", phash=turned(b, bits=24)),  # near to 6 alone
    ]
    gone = dropped(entries, ())
    assert set(range(8)) - set(gone) in ({4, 5, 7}, {4, 6})
    assert find_pairs(entries, gone) == []
    assert gone[2] == "patient with a copy in another split"
    # An excluded film does not hide the pair of the others.
    assert [pair[:2] for _, pair in find_pairs(entries, {0, 1, 2, 5, 6, 7})] == [(3, 4)]


def test_leaks_of_each_two_splits_count_once(monkeypatch):
    def split(name, *patients):
        films = tuple(f"{name}{i}" for i in range(len(patients)))
        hashes = np.random.default_rng(len(name)).integers(0, 2**63, (len(films), 4), np.uint64)
        return leaks.Index(name, "key", films, patients, films, hashes)

    people = {"train": "ab", "val": "a", "test": "ab"}
    made = {name: split(name, *patients) for name, patients in people.items()}
    monkeypatch.setattr(train, "read_index", lambda path: made)
    config = config_of("films", data__leaks="allow")
    assert train.leaks_of(config) == {"patient": 3}
    assert train.leaks_of(config, "val") == {"patient": 4}
