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
from xmae_jax.tasks import evaluate, trained_on
from xmae_jax.tasks.held_out import Model
from xmae_jax.tasks.model import LoadedRun, load_run
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
    assert found["findings"]["Pneumothorax"]["difference"]["auroc"] == 0.0
    assert found["findings"]["Nodule"]["difference"]["auroc"] != 0.0
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
    rows = list(Model(loaded, config).rows(split, "logits", "labels"))
    assert [tuple(row["id"]) for row in rows] == [(0, i) for i in range(films)]
    evaluator = Classification(FINDINGS, {"test": [entries]}, train_positive=None)
    metrics, text = evaluator.evaluate({"test": rows.__iter__})
    assert metrics["films"] == films
    assert [line["id"] for line in csv.DictReader(text.splitlines())] == [e.id for e in entries]
    one = dataclasses.replace(loaded.config, mesh=MeshConfig(1, 1, 1))
    alone = list(Model(loaded, one).rows(split, "logits", "labels"))
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


def edited(shards, copy, change):
    """Copy a data set, and change each line of its index, a dict."""
    shutil.copytree(shards, copy)
    with (copy / "index.csv").open() as lines:
        table = list(csv.DictReader(lines))
    for line in table:
        change(line)
    with (copy / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    manifest = load_manifest(copy)
    manifest["metadata"]["index.csv"] = file_digest(copy / "index.csv")
    write_manifest(copy, manifest)
    return copy


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_films_of_training_in_the_data_stop_it(evaluated, shards, tmp_path):
    """Another data set's test films must not stand in this run's training split."""
    entries = read_entries(shards)
    moved_films = sum(entry.split == "test" for entry in entries)
    train = next(e.patient for e in entries if e.split == "train")
    moved = edited(
        shards, tmp_path / "moved", lambda e: e.update(patient=train) if e["split"] == "test" else 0
    )
    config = with_data(load_run(evaluated).config, path=str(moved))
    with pytest.raises(Leaked, match="one patient on both sides"):
        evaluate.run(config, evaluated, split="test", against=None)
    with pytest.raises(Leaked, match="a copy of one film on both sides"):  # another set's training
        evaluate.run(config, evaluated, split="train", against=None)
    before = read(folder(evaluated, "test"))
    evaluate.run(with_data(config, leaks="allow"), evaluated, split="test", against=None)
    (found,) = evaluated.glob("eval/classification_test_*/step_4")
    assert read(found)["about"]["leaks"] == {"patient": moved_films}
    assert not read(found)["about"]["own_data"] and before["about"]["own_data"]
    assert read(folder(evaluated, "test")) == before


def test_the_training_split_is_known_by_its_data(finetuned, shards, tmp_path):
    loaded = load_run(finetuned)
    same = with_data(loaded.config, path=str(shutil.copytree(shards, tmp_path / "same")))
    other = edited(shards, tmp_path / "other", lambda line: line.update(vendor="x"))
    other = with_data(loaded.config, path=str(other))
    assert trained_on.is_own(loaded, same) and not trained_on.is_own(loaded, other)
    assert trained_on.of_training(loaded, same, "train") and trained_on.check(
        loaded, same, ["train"]
    ).leaks == {}  # fmt: skip
    assert not trained_on.of_training(loaded, same, "val")
    assert not trained_on.of_training(loaded, other, "train")
    gone = dataclasses.replace(loaded, config=with_data(loaded.config, path="gone"))
    assert trained_on.is_own(gone, same) and trained_on.check(gone, same, ["test"]).leaks == {}
    assert not trained_on.is_own(loaded, with_data(same, leave_out_source="x"))


def test_a_run_of_findings_before_counts_as_training(finetuned, shards, tmp_path):
    """It was trained on what is now held out."""
    loaded = load_run(finetuned)
    begun = dataclasses.replace(loaded, workdir=tmp_path / "child")
    begun = dataclasses.replace(
        begun, config=dataclasses.replace(loaded.config, init_from=str(finetuned))
    )
    assert trained_on.check(begun, begun.config, ["val", "test"]).leaks == {}
    parent = tmp_path / "parent"
    shutil.copytree(finetuned, parent)
    tree = json.loads((parent / "config.json").read_text())
    tree["data"]["split"] = "test"
    (parent / "config.json").write_text(json.dumps(tree))
    begun = dataclasses.replace(
        begun, config=dataclasses.replace(loaded.config, init_from=str(parent))
    )
    assert trained_on.check(begun, begun.config, ["val"]).compared == [
        f"{shards} (test)", f"{shards} (train)"
    ]  # fmt: skip
    with pytest.raises(Leaked, match="a copy of one film"):
        trained_on.check(begun, begun.config, ["test"])


def test_a_run_before_that_is_gone_is_named(finetuned, tmp_path, capsys):
    loaded, gone, file = load_run(finetuned), tmp_path / "gone", tmp_path / "gone.safetensors"
    for key, start in (("init_from", gone), ("decoder_from", gone), ("init_from", file)):
        config = loaded.config
        if key == "init_from":
            config = dataclasses.replace(config, init_from=str(start))
        else:
            config = dataclasses.replace(config, objective={**config.objective, key: str(start)})
        checked = trained_on.check(dataclasses.replace(loaded, config=config), config, ["test"])
        assert checked.gone == [str(gone)] * (start == gone)
        assert (f"what {gone} was trained on" in capsys.readouterr().out) == (start == gone)


def test_reports_of_a_warm_start_count_as_training(shards, tmp_path):
    """Of patients whose films are held out now."""
    warm = make_run(tmp_path / "warm", "finetune_report", data=shards, data__text__views=0,
                    data__split="test")  # fmt: skip
    begun = LoadedRun(
        tmp_path / "run",
        dataclasses.replace(
            with_data(warm, split="train"),
            objective={**warm.objective, "decoder_from": str(tmp_path / "warm")},
        ),
        *(None,) * 4,
        step=2,
    )
    checked = trained_on.check(begun, begun.config, ["val"])
    assert checked.compared == [f"{shards} (test)", f"{shards} (train)"]
    with pytest.raises(Leaked, match="a copy of one film"):
        trained_on.check(begun, begun.config, ["test"])


def test_a_refitted_head_keeps_the_thresholds_from_before(evaluated, shards, tmp_path):
    """What it says of validation now is of films that it was trained on."""
    workdir = tmp_path / "probe"
    shutil.copytree(evaluated, workdir)
    (workdir / "probe.json").write_text('{"refitted": true}')
    file = folder(workdir, "test") / "predictions.csv"
    header, *lines = file.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    columns = [i for i, name in enumerate(header.split(",")) if name.startswith("logit:")]
    for i, line in enumerate(cells):
        if line[0] == "val":  # what another head said
            for column in columns:
                line[column] = f"{i % 7 + 0.125}"
    file.write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    text, config = file.read_text(), load_run(workdir).config
    (folder(workdir, "test") / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="--split=val: the head was chosen on it and then"):
        evaluate.run(config, workdir, split="val", against=None)
    with pytest.raises(Leaked, match="a copy of one film"):  # validation is training now
        trained_on.check(load_run(workdir), config, ["val"])
    evaluate.run(config, workdir, split=None, against=None)
    assert file.read_text() == text
    metrics = read(folder(workdir, "test"))
    limits = [entry["threshold"]["logit"] for entry in metrics["findings"].values()
              if entry["threshold"]]  # fmt: skip
    assert limits and all(limit % 1 == 0.125 for limit in limits)
    assert metrics["about"]["refitted_on"] == "val"
    assert metrics["about"]["leaks_compared"] == [f"{shards} (train)", f"{shards} (val)"]
    assert "are from what the head said of it before" in (file.parent / "report.html").read_text()
    file.unlink()
    evaluate.run(config, workdir, split=None, against=None)
    metrics = read(folder(workdir, "test"))
    assert metrics["chosen_on"]["films"] == 0 and metrics["macro"]["threshold"]["f1"] is None


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
