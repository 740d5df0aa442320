"""Reports without films as shards: the same schema, ids and splits; nothing of them in messages."""

import csv
import dataclasses
import json
import os
import re

import cv2
import numpy as np
import pytest

from data_prep import build, phantoms, reports, verify
from data_prep.audit import audit
from data_prep.splits import split_of
from tests.data.test_studies import film, model, seen, study, text, view_of  # noqa: F401
from xmae_jax.data.batch import LoadStep
from xmae_jax.data.index import INDEX, label_matrix, near_pairs, read_entries, read_index
from xmae_jax.data.leaks import find_leaks
from xmae_jax.data.manifest import file_digest, load_manifest, write_manifest
from xmae_jax.data.records import FINDINGS, Records
from xmae_jax.data.studies import open_studies
from xmae_jax.tasks.train import refuse_leaks

SECRET = "Zyxwvut"


def rows(count=120):
    return [
        {
            "study_id": f"s{i}",
            "patient_id": f"p{i // 2}",
            "source": "made",
            "findings": "Clear lungs." if i % 3 else "",
            "impression": f"{SECRET} effusion." if i % 2 else "",
            "indication": "Cough.",
            "licence": "CC0-1.0",
            "sex": "F",
            "age": "95",
            "Edema": str(i % 2),
            "note": "no finding",
        }
        for i in range(count)
    ]


def table(path, made):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("17" * 32 + "\n")
    path.chmod(0o600)
    return str(path)


def made(source, output, key, *extra):
    return reports.main(["--input", str(source), "--output", str(output), "--key", key, *extra])


@pytest.fixture(scope="module")
def reported(tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("reports")
    assert made(table(folder / "reports.csv", rows()), folder / "out", key) == 0
    return folder / "out"


def test_records_hold_reports_and_no_film(reported):
    found = [one for split in ("train", "val", "test") for one in Records(reported, split)]
    kept = [row for row in rows() if row["findings"] or row["impression"]]
    assert len(found) == len(kept) < 120
    for one in found:
        assert one["image"] == b"" and one["lung_mask"] is None and one["view"] == ""
        assert one["report"]["indication"] == "Cough." and one["report"]["comparison"] == ""
        assert (one["sex"], one["age"], one["source"]) == ("F", 90.0, "made")
        assert not re.search(r"\bs\d|\bp\d", one["id"] + one["patient"] + one["study"])
    assert sum(bool(one["report"]["impression"]) for one in found) == 60
    manifest = load_manifest(reported)
    assert (manifest["size"], manifest["codec"]) == (0, "none")
    counts = manifest["counts"]
    assert (counts["reports"], counts["rejected"]) == (len(kept), 120 - len(kept))
    assert counts["licences"] == {"CC0-1.0": len(kept)}
    edema = label_matrix(read_entries(reported))[:, FINDINGS.index("Edema")]
    assert {0.0, 1.0} == set(edema.tolist())
    rejected = list(csv.DictReader((reported / "rejected.csv").open()))
    assert len(rejected) == counts["rejected"] and "line 2" in rejected[0]["file"]
    assert os.stat(reported / "rejected.csv").st_mode & 0o777 == 0o600


def test_splits_are_those_of_the_patients(reported):
    wanted = {split_of(f"p{i}") for i in range(60)}
    sets = {split: {one["patient"] for one in Records(reported, split)} for split in wanted}
    assert not sets["train"] & sets["val"] and not sets["train"] & sets["test"]
    assert sum(map(len, sets.values())) == 60


def test_it_verifies_and_a_second_run_changes_nothing(reported, key, capsys, tmp_path):
    assert verify.main(["--data", str(reported)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["records"] == load_manifest(reported)["counts"]["reports"]
    before = {path: path.read_bytes() for path in reported.iterdir()}
    source = reported.parent / "reports.csv"
    assert made(source, reported, key) == 0
    assert before == {path: path.read_bytes() for path in reported.iterdir()}
    assert "up to date" in capsys.readouterr().out
    assert made(source, tmp_path / "again", key) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: data for path, data in before.items()
    }
    other = table(tmp_path / "other.csv", rows(90))
    assert made(other, reported, key) == 64
    assert made(source, reported, key, "--name", "else") == 64


def test_tfds_reads_it(reported):
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.builder_from_directory(reported).as_data_source("val")
    ours = [*Records(reported, "val")]
    assert len(source) == len(ours) > 0
    for theirs, mine in zip(source, ours, strict=True):
        assert theirs["image"] == b""
        assert theirs["report"]["impression"].decode() == mine["report"]["impression"]


def test_patients_are_compared_with_those_of_films(shards, tmp_path, key):
    # The fixture's films have patients ph-0-... under the same key.
    one = {"study_id": "x", "findings": "Clear.", "split": "train"}
    patients = [phantoms.draw(0, i, size=64).patient for i in range(40)]
    table_ = [one | {"study_id": f"x{i}", "patient_id": p} for i, p in enumerate(set(patients))]
    assert made(table(tmp_path / "r.csv", table_), tmp_path / "out", key) == 0
    text_only, films = read_index(tmp_path / "out")["train"], read_index(shards)
    leaks = find_leaks([text_only], [films["val"], films["test"]])
    assert {leak.kind for leak in leaks} == {"patient"}
    assert len(leaks) == len(films["val"].ids) + len(films["test"].ids)


def test_a_report_of_a_film_under_another_name_of_its_patient_is_told(tmp_path, key, capsys):
    told = " ".join(f"Word {i} of a report." for i in range(12))
    films = tmp_path / "films"
    (films / "images").mkdir(parents=True)
    cv2.imwrite(str(films / "images/a.png"), phantoms.draw(0, 0, size=96).image)
    row = {"image": "images/a.png", "patient_id": "openi:1", "study_id": "1", "split": "test"}
    table(films / "labels.csv", [row])
    table(films / "reports.csv", [{"study_id": "1", "findings": told, "impression": ""}])
    argv = ["--input", films, "--output", tmp_path / "shards", "--key", key, "--size", "64"]
    assert build.main([str(one) for one in [*argv, "--lungs", "none", "--workers", "1"]]) == 0
    one = {"study_id": "x", "patient_id": "1", "findings": f" {told}", "split": "train"}
    short = one | {"study_id": "y", "patient_id": "2", "findings": "Clear."}
    source = table(tmp_path / "r.csv", [one, short])
    assert made(source, tmp_path / "out", key) == 0
    seen, held = read_index(tmp_path / "out")["train"], read_index(tmp_path / "shards")["test"]
    assert len(seen.texts_alone) == len(held.texts) == 1 and not seen.texts
    capsys.readouterr()
    assert refuse_leaks([seen], [held], allow=False) == {"same report": 1}
    assert "note: 1 long reports stand in two splits word for word" in capsys.readouterr().out
    assert "1 long reports" in audit([tmp_path / "out", tmp_path / "shards"])[0]["notes"][0]
    assert refuse_leaks([held], [dataclasses.replace(held, name="other")], allow=True) == {
        "patient": 1, "copy": 1
    }  # fmt: skip
    assert made(source, tmp_path / "named", key, "--patient-prefix", "openi:") == 0
    named = read_index(tmp_path / "named")["train"]
    assert {leak.kind for leak in find_leaks([named], [held])} == {"patient"}


def test_an_index_from_before_texts_is_read(reported, tmp_path):
    for path in reported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / INDEX).read_text().splitlines()
    (tmp_path / INDEX).write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines))
    manifest = load_manifest(tmp_path)
    manifest["metadata"][INDEX] = file_digest(tmp_path / INDEX)
    write_manifest(tmp_path, {k: v for k, v in manifest.items() if k != "format"})
    blank = [entry._replace(text="") for entry in read_entries(reported)]
    assert list(map(str, read_entries(tmp_path))) == list(map(str, blank))


def test_a_report_is_a_copy_of_no_film_and_of_no_other(reported):
    for index in read_index(reported).values():
        assert len(set(index.pixels)) == len(index.pixels)
        assert near_pairs(index.hashes) == []


def test_studies_and_view_have_no_image(reported, shards, text):  # noqa: F811
    studies = open_studies(reported, "train", views=2)
    assert all(not example["films"] for example in studies)
    row = seen(view_of(text), studies[0])
    assert not row["has_image"].any()
    both = [studies, open_studies(shards, "train", views=2)]
    ids = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.int32)
    batch = LoadStep(lambda step: ids, both, view_of(text), 0, slice(None), skip=False)(0)
    np.testing.assert_array_equal(batch["has_image"].any(axis=1), [False, True, False, True])
    assert batch["has_text"].any() and not batch["image"][::2].any()


def test_a_set_of_reports_with_a_film_is_damaged(reported, shards, tmp_path, capsys):
    from xmae_jax.data import records as lib
    from xmae_jax.data.manifest import describe

    for path in reported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = load_manifest(tmp_path)
    entry = manifest["files"][0]
    with_film = {**Records(reported, "train")[0], "image": Records(shards, "train")[0]["image"]}
    lib.write_shard(tmp_path / entry["file"], [lib.encode(with_film)])
    manifest["files"][0] = describe(tmp_path / entry["file"], split="train", records=1)
    write_manifest(tmp_path, {k: v for k, v in manifest.items() if k != "format"})
    assert verify.main(["--data", str(tmp_path)]) == 65
    assert "has a film, in a data set of reports alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r[5].update(study_id=""), "line 7, column study_id: blank"),
        (lambda r: r[5].update(study_id="s1"), "line 7, column study_id: a second row"),
        (lambda r: r[3].update(split="val"), "column split: a patient with reports in two"),
        (lambda r: r[1].update(Edema=SECRET), "line 3, column Edema: neither blank nor"),
        (lambda r: [row.update(findings="", impression="") for row in r], "no report"),
    ],
)
def test_a_bad_table_is_named_and_not_quoted(tmp_path, key, capsys, change, told):
    wrong = [row | {"split": ""} for row in rows(20)]
    wrong[2]["split"] = wrong[3]["split"] = "train"
    change(wrong)
    assert made(table(tmp_path / "reports.csv", wrong), tmp_path / "out", key) == 65
    out, error = capsys.readouterr()
    assert told in error and SECRET not in out + error
    assert not (tmp_path / "out").exists()


def test_usage_errors_exit_64(tmp_path, key):
    source = table(tmp_path / "reports.csv", rows(20))
    assert made(tmp_path / "no.csv", tmp_path / "out", key) == 64
    assert made(source, tmp_path / "out", key, "--name", "No") == 64
    assert made(source, source, key) == 64
    assert made(source, tmp_path / "out", str(tmp_path / "out" / "key")) == 64
    assert made(source, tmp_path, key) == 64  # not empty


def test_indiana_reports(cxr, tmp_path, key, capsys):
    with (cxr / "reports.csv").open(newline="") as file:
        some = list(csv.DictReader(file))[:400]
    assert made(table(tmp_path / "reports.csv", some), tmp_path / "out", key) == 0
    assert verify.main(["--data", str(tmp_path / "out")]) == 0
    assert load_manifest(tmp_path / "out")["counts"]["reports"] > 380
    assert re.match(
        r"\d+ reports \(train \d+, val \d+, test \d+\), \d+ rej", capsys.readouterr().out
    )
