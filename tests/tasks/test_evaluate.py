"""Evaluation as users run it: a run, a file, two of them, and what is refused."""

import csv
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from tests.made_runs import make_run
from tests.runs import finish
from xmae_jax import main
from xmae_jax.config import ConfigError, MeshConfig
from xmae_jax.data.index import read_entries
from xmae_jax.data.leaks import Leaked
from xmae_jax.data.manifest import file_digest, load_manifest, write_manifest
from xmae_jax.data.records import Records
from xmae_jax.evaluators.classification import Classification
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.tasks import evaluate
from xmae_jax.tasks.evaluate import Model
from xmae_jax.tasks.model import load_run
from xmae_jax.tasks.split import open_split

FINDINGS = ("Nodule", "Pneumothorax", "Pleural Effusion")


@pytest.fixture(scope="module")
def finetuned(shards, tmp_path_factory):
    """Make the run directory of a tiny model."""
    workdir = tmp_path_factory.mktemp("finetuned") / "run"
    encoder = dict(objective__encoder__width=24, objective__encoder__depth=1)
    make_run(workdir, "finetune_full", data=shards, step=4, objective__findings=FINDINGS, **encoder)
    return workdir


@pytest.fixture(scope="module")
def evaluated(finetuned):
    """Evaluate it on validation and test films."""
    evaluate.run(load_run(finetuned).config, finetuned, split=None, against=None)
    return finetuned


def folder(workdir, split):
    return workdir / "eval" / f"classification_{split}" / "step_4"


def read(path):
    return json.loads((path / "metrics.json").read_text())


def test_a_run_is_scored_on_both_splits(evaluated, shards):
    workdir = evaluated
    for split, splits in (("val", ["val"]), ("test", ["val", "test"])):
        metrics = read(folder(workdir, split))
        lines = list(csv.DictReader((folder(workdir, split) / "predictions.csv").open()))
        assert list(dict.fromkeys(line["split"] for line in lines)) == splits
        for name in splits:
            entries = [e for e in read_entries(shards) if e.split == name]
            of = [line for line in lines if line["split"] == name]
            assert [line["id"] for line in of] == [e.id for e in entries]
            assert [line["patient"] for line in of] == [e.patient for e in entries]
        assert metrics["split"] == split and metrics["films"] == len(entries)
        assert metrics["about"]["step"] == 4 and metrics["about"]["leaks"] == {}
        assert set(metrics["findings"]) == set(FINDINGS)
        assert metrics["findings"]["Nodule"]["frequency"] == "tail"
        page = (folder(workdir, split) / "report.html").read_text()
        assert f"step 4 of {workdir}" in page


def test_the_file_alone_gives_the_same_numbers(evaluated, tmp_path):
    workdir = evaluated
    file = folder(workdir, "test") / "predictions.csv"
    evaluate.run_file(file, split="test", against=None, folder=tmp_path)
    alone, metrics = read(tmp_path / "classification_test"), read(folder(workdir, "test"))
    assert not (tmp_path / "classification_val").exists()
    assert alone.pop("about") == {"predictions": str(file)}
    # Only what training says of a finding is not in the file.
    del metrics["about"], metrics["frequency_groups"], alone["frequency_groups"]
    for entry in metrics["findings"].values():
        del entry["train_positive"], entry["frequency"]
    assert alone == metrics


def test_two_runs_are_compared(evaluated, tmp_path, capsys):
    workdir = evaluated
    file = folder(workdir, "test") / "predictions.csv"
    with file.open() as lines:
        header, *rows = list(csv.reader(lines))
    for line in rows:
        line[header.index("logit:Nodule")] = f"{len(line[3]) + int(line[2]) % 3}"
    other = tmp_path / "other.csv"
    with other.open("w", newline="") as lines:
        csv.writer(lines).writerows([header, *rows[:-1]])
    evaluate.run_file(other, split="test", against=workdir, folder=tmp_path)
    found = read(tmp_path / "classification_test")["against"]
    assert found["file"] == str(file)
    assert found["films"] == found["films_of_each"][0] == found["films_of_each"][1] - 1
    assert found["findings"]["Pneumothorax"]["difference"]["auroc"] in (0.0, None)
    assert f"against {file}" in capsys.readouterr().out
    assert "Comparison" in (tmp_path / "classification_test" / "report.html").read_text()


class Few(Records):
    """The first records of a split."""

    def __init__(self, directory, split, films):
        super().__init__(directory, split)
        self.films = films

    def __len__(self):
        return self.films


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("films", [1, 7, 8])
def test_every_film_counts_once_whatever_the_mesh(finetuned, shards, films, devices):
    entries = [e for e in read_entries(shards) if e.split == "train"][:films]
    split = open_split(load_run(finetuned).config, "train", findings=FINDINGS)
    split = dataclasses.replace(split, records=[Few(shards, "train", films)])
    split.__dict__["entries"] = [entries]
    loaded = load_run(finetuned)
    config = dataclasses.replace(
        loaded.config, mesh=MeshConfig(devices, 1, 1), batch_size=devices if devices > 1 else 3
    )
    rows = list(Model(loaded, config).rows(split))
    assert [tuple(row["id"]) for row in rows] == [(0, i) for i in range(films)]
    evaluator = Classification(FINDINGS, {"test": [entries]}, train_positive=None)
    metrics, text = evaluator.evaluate({"test": rows.__iter__})
    assert metrics["films"] == films
    assert [line["id"] for line in csv.DictReader(text.splitlines())] == [e.id for e in entries]
    one = dataclasses.replace(loaded.config, mesh=MeshConfig(1, 1, 1))
    alone = list(Model(loaded, one).rows(split))
    for a, b in zip(rows, alone, strict=True):
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=1e-5, atol=1e-6)


def test_what_is_refused(evaluated, tmp_path, shards):
    workdir = evaluated
    file = folder(workdir, "test") / "predictions.csv"
    config = load_run(workdir).config
    with pytest.raises(ConfigError, match=r"--split=dev: .* has val, test"):
        evaluate.run_file(file, split="dev", against=None, folder=None)
    with pytest.raises(ConfigError, match="no such file"):
        evaluate.run_file(tmp_path / "none.csv", split=None, against=None, folder=None)
    with pytest.raises(ConfigError, match="has no predictions for split 'test'; first --task"):
        evaluate.run_file(file, split="test", against=tmp_path, folder=None)
    with pytest.raises(ConfigError, match="--split=dev: the data have test, train, val"):
        evaluate.run(config, workdir, split="dev", against=None)
    other = dataclasses.replace(config, image_size=128)
    with pytest.raises(ConfigError, match="config.image_size: 64 in the run directory, 128 now"):
        evaluate.run(other, workdir, split=None, against=None)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(PredictionsError, match="no text in UTF-8"):
        evaluate.run_file(binary, split=None, against=None, folder=None)


def test_films_of_training_in_the_data_stop_it(finetuned, shards, tmp_path):
    """Another data set's test films must not stand in this run's training split."""
    entries = read_entries(shards)
    moved_films = sum(entry.split == "test" for entry in entries)
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    lines = (moved / "index.csv").read_text().splitlines()
    column = lines[0].split(",").index("patient")
    train = next(e.patient for e in entries if e.split == "train")
    for i, entry in enumerate(entries, 1):
        if entry.split == "test":
            cells = lines[i].split(",")
            cells[column] = train
            lines[i] = ",".join(cells)
    (moved / "index.csv").write_text("\n".join(lines) + "\n")
    manifest = load_manifest(moved)
    manifest["metadata"]["index.csv"] = file_digest(moved / "index.csv")
    write_manifest(moved, manifest)
    config = load_run(finetuned).config
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(moved)))
    with pytest.raises(Leaked, match="one patient on both sides"):
        evaluate.run(config, finetuned, split="test", against=None)
    allowed = dataclasses.replace(config.data, leaks="allow")
    config = dataclasses.replace(config, data=allowed)
    evaluate.run(config, finetuned, split="test", against=None)
    assert read(folder(finetuned, "test"))["about"]["leaks"] == {"patient": moved_films}


def test_a_score_that_is_no_number_ends_with_65(evaluated, tmp_path):
    workdir = evaluated
    text = (folder(workdir, "test") / "predictions.csv").read_text().splitlines()
    column = text[0].split(",").index("logit:Pneumothorax")
    cells = text[2].split(",")
    cells[column] = "nan"
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([*text[:2], ",".join(cells), *text[3:]]) + "\n")
    with pytest.raises(PredictionsError, match="line 3, logit:Pneumothorax: the score is no fin"):
        evaluate.run_file(bad, split=None, against=None, folder=None)
    assert main.EXIT_CODES[PredictionsError] == 65


@pytest.mark.slow
def test_scores_in_training_are_those_of_evaluation(shards, tmp_path):
    workdir = tmp_path / "run"
    argv = [sys.executable, "-m", "xmae_jax.main", f"--workdir={workdir}"]
    options = ["--config=configs/finetune_full.py:smoke", f"--config.data.path={shards}"]
    code, out = finish([*argv, *options, "--config.total_steps=4"])
    assert code == 0, out
    code, out = finish([*argv, "--task=evaluate"])
    assert code == 0 and f"report: {folder(workdir, 'test')}" in out, out
    in_training, after = workdir / "eval" / "classification" / "step_4", folder(workdir, "val")
    assert (in_training / "predictions.csv").read_text() == (after / "predictions.csv").read_text()
    metrics = read(after)
    del metrics["about"]
    assert read(in_training) == metrics
