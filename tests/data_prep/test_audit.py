"""The audit finds what stands in two splits, names it, and lets sound sets pass."""

import json

import pytest
from PIL import Image

from data_prep import audit
from tests.data_prep import test_leaks
from tests.data_prep.test_leaks import again, archive, build, film, member, other_split, plain
from xmae_jax.data.index import read_entries

first = test_leaks.first  # a set of 40 films, and who is where
CLEAN = {"patients_across_splits": 0, "copies_across_splits": 0, "near_copies_across_splits": 0}


@pytest.fixture
def run(capsys):
    """Return a function that runs the command; it returns exit code, report and lines."""

    def call(*arguments):
        capsys.readouterr()
        code = audit.main(["--data", *map(str, arguments)])
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert (code == 0) == report["ok"] == (not err) and code in (0, 65)
        assert "ZZPHI" not in out + err
        return code, report, err

    return call


def second(first, tmp_path, films, *, key=None):
    """Build another set of 20 patients and the given films; with the first set's key or another."""
    tmp_path.mkdir(exist_ok=True)
    archive(
        tmp_path / "films", {f"ZZPHI {k}": v for k, v in (plain(20, start=100) | films).items()}
    )
    if key is None:
        (tmp_path / "key").write_bytes((first[0].parent / "key").read_bytes())
    assert build(tmp_path / "films", tmp_path / "shards", key=key or "key") == 0
    return tmp_path / "shards"


def test_sound_sets_pass(first, tmp_path, run):
    other = second(first, tmp_path, {})
    code, report, _ = run(first[0], other)
    assert code == 0 and CLEAN.items() <= report.items()
    assert report["pairs"] == [] and report["notes"] == []
    assert report["sets"][str(other)].keys() <= {"train", "val", "test"}
    assert sum(report["sets"][str(other)].values()) == 20
    assert len(set(report["keys"].values())) == 1


@pytest.mark.parametrize("kind", ["copy", "near copy"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_planted_film_is_named(first, tmp_path, run, kind, split):
    shards, where = first
    i = member(where, split)
    pixels, name = (film(i), "x.png") if kind == "copy" else (again(film(i)), "x.jpg")
    patient = other_split(where, "test", "ZZPHI")
    other = second(first, tmp_path, {name: (pixels, patient)})
    code, report, err = run(shards, other)
    counted = {"copy": "copies", "near copy": "near_copies"}[kind] + "_across_splits"
    assert code == 65 and report | {counted: 1} == report
    assert {name: report[name] for name in CLEAN if name != counted} == {
        name: 0 for name in CLEAN if name != counted
    }
    (pair,) = report["pairs"]
    assert pair["kind"] == kind and f"a {kind} of one film on both sides: " in err
    assert pair["splits"] == [f"{shards} ({split})", f"{other} (test)"]
    assert all(name in err for name in pair["ids"] + pair["splits"])
    known = [{e.id for e in read_entries(directory)} for directory in (shards, other)]
    assert all(name in of for name, of in zip(pair["ids"], known, strict=True))
    # Alone each is sound.
    assert run(shards)[0] == 0 == run(other)[0]


def test_a_patient_in_two_splits_is_named(first, tmp_path, run, monkeypatch):
    shards, where = first
    i = member(where, "val")
    monkeypatch.setattr("data_prep.splits.split_of", lambda _: "train")
    planted = {f"{n}.png": (film(900 + n), f"patient {i}") for n in range(2)}
    other = second(first, tmp_path, planted)
    code, report, err = run(other, shards)
    assert code == 65 and report["patients_across_splits"] == 1
    assert report["copies_across_splits"] == 0 == report["near_copies_across_splits"]
    assert "one patient on both sides: " in err and report["pairs"][0]["ids"][0] in err


def test_a_pair_within_one_set_is_named(first, tmp_path, run):
    _, where = first
    train, test = (other_split(where, split, "ZZPHI") for split in ("train", "test"))
    twins = {"a.png": (film(500), train), "b.png": (film(500), test), "c.png": (film(500), train)}
    other = second(first, tmp_path, twins)
    code, report, err = run(other)
    assert code == 65 and report["copies_across_splits"] == 1
    assert f"{other} (train)" in err and f"{other} (test)" in err
    assert report["notes"] == [f"{other} (train): 1 of {report['sets'][str(other)]['train']} films"
                               " are copies of others there"]  # fmt: skip


def test_sets_of_two_keys_need_a_word(first, tmp_path, run):
    shards, where = first
    i = member(where, "val")
    patient = other_split(where, "train", "ZZPHI")
    other = second(first, tmp_path / "one", {}, key="another")
    code, report, err = run(shards, other)
    assert code == 65 and CLEAN.items() <= report.items()
    assert "different keys" in err and str(shards) in err and str(other) in err
    assert len(set(report["keys"].values())) == 2
    code, report, _ = run(shards, other, "--allow-other-keys")
    assert code == 0 and "different keys" in report["notes"][0]
    # A picture is found whatever the key.
    other = second(first, tmp_path / "two", {"x.png": (film(i), patient)}, key="another")
    code, report, err = run(shards, other, "--allow-other-keys")
    assert code == 65 and report["copies_across_splits"] == 1 and "a copy of one film" in err
    assert "different keys" not in err


@pytest.mark.parametrize(
    "arguments", [[], ["--data"], ["--data", "gone"], ["--data", ".", "--fix"]]
)
def test_usage_errors_exit_64(arguments, capsys):
    assert audit.main(arguments) == 64
    out, err = capsys.readouterr()
    assert not out and err


@pytest.mark.parametrize("file", ["manifest.json", "index.csv"])
def test_damage_exits_65(tmp_path, capsys, file):
    (tmp_path / "films").mkdir()
    Image.fromarray(film(0)).save(tmp_path / "films/a.png")
    assert build(tmp_path / "films", tmp_path / "shards") == 0
    path = tmp_path / "shards" / file
    path.write_text(path.read_text().replace("a", "b"))
    capsys.readouterr()
    assert audit.main(["--data", str(tmp_path / "shards")]) == 65
    out, err = capsys.readouterr()
    assert not out and str(path) in err
    path.unlink()
    assert audit.main(["--data", str(tmp_path / "shards")]) == 65
