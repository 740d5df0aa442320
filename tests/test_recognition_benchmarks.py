"""The benchmarks of recognition run from films to a table, at a size that means nothing."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import probing
from benchmarks.recognition_real import TASKS
from xmae_jax.scores.predictions import Film, Predictions

GENERATOR = np.random.default_rng(0)


def predictions(shift: float, patients: range) -> Predictions:
    """Make films of two findings, the second never there, whose positives score higher."""
    labels = np.zeros((len(patients), 2))
    labels[::2, 0] = 1
    logits = GENERATOR.normal(size=labels.shape) + shift * labels
    films = tuple(
        Film("test", 0, i, str(i), str(patient), "", "", "", "", np.nan)
        for i, patient in enumerate(patients)
    )
    return Predictions(("Nodule", "Hernia"), films, logits, labels)


def test_a_clear_difference_has_an_interval_above_zero():
    good = probing.auroc([predictions(3.0, range(80)) for _ in range(3)])
    chance = probing.auroc([predictions(0.0, range(80)) for _ in range(3)])
    apart = probing.difference(good["Nodule"], chance["Nodule"])
    assert apart.interval is not None and apart.interval[0] > 0.2
    assert apart.mean == pytest.approx(good["Nodule"].mean - chance["Nodule"].mean)
    same = probing.difference(good["Nodule"], good["Nodule"])
    assert same.interval == [0.0, 0.0]


def test_a_one_sided_finding_is_undefined_and_left_out_of_the_mean():
    parts = [predictions(1.0, range(40 * k, 40 * k + 40)) for k in range(2)]
    scores = probing.auroc(parts)
    assert probing.told(scores["Hernia"]) == {
        "auroc": None, "interval": None, "parts": [None, None],
    }  # fmt: skip
    assert "undefined" in probing.line("Hernia", scores["Hernia"])
    assert scores["macro"].mean == scores["Nodule"].mean
    assert scores["Nodule"].mean == pytest.approx(scores["Nodule"].parts.mean())


@pytest.mark.slow
def test_probes_on_phantoms_run(tmp_path, capsys):
    from benchmarks import probe_phantoms

    probe_phantoms.main(["--smoke", "--folder", str(tmp_path)])
    assert "GLoRI - linear" in capsys.readouterr().out
    told = json.loads((tmp_path / "scores.json").read_text())
    assert set(told["scores"]) == {
        f"{head}_{start}" for head in probing.PROBES for start in ("pretrained", "random")
    }


@pytest.mark.slow
def test_reports_of_phantoms_run_and_are_scored_again(tmp_path, capsys):
    from benchmarks import report_phantoms

    for _ in range(2):
        report_phantoms.main(["--smoke", "--folder", str(tmp_path)])
        assert "all seven" in capsys.readouterr().out
    told = json.loads((tmp_path / "scores.json").read_text())
    assert told["films"]["studies"] == told["shuffled"]["studies"] > 5
    ids = [
        {line.split(",")[3] for line in table.read_text().splitlines()}
        for table in tmp_path.glob("report/eval/report_test*/*/predictions.csv")
    ]
    assert len(ids) == 2 and ids[0] == ids[1]


@pytest.mark.slow
def test_real_films_run(tmp_path, capsys):
    from benchmarks import recognition_real
    from data_prep import phantoms

    films = a_folder_like_the_real_one(tmp_path / "films", phantoms)
    argv = ["--films", str(films), "--work", str(tmp_path / "work"), "--smoke"]
    assert recognition_real.main(argv) == 0
    assert "pre-trained - pixels" in capsys.readouterr().out
    told = json.loads((tmp_path / "work" / "scores.json").read_text())
    assert told["tuberculosis"]["films"] == 30 and told["nih"]["films"] == 50
    held_out = set()
    for fold in range(recognition_real.FOLDS):
        here = tmp_path / "work" / f"fold{fold}"
        hidden, seen = (patients(here / name / "films") for name in ("held_out", "others"))
        shards = json.loads((here / "others" / "shards" / "manifest.json").read_text())
        stored = sum(entry["records"] for entry in shards["files"])
        assert hidden and hidden <= seen and stored < len(seen) + 100
        assert not hidden & held_out
        held_out |= hidden


def patients(folder: Path) -> set[str]:
    with (folder / "labels.csv").open(newline="") as lines:
        return {row["patient_id"] for row in csv.DictReader(lines)}


def a_folder_like_the_real_one(folder: Path, phantoms) -> Path:
    """Draw phantoms and label them as tuberculosis films and as small ones of NIH."""
    names = sorted({name for of in TASKS.values() for name in of})
    for part, count, source in ((folder, 30, "NLM films"), (folder / "small", 50, "NIH films")):
        argv = ["--output", str(part), "--count", str(count), "--size", "64", "--workers", "1"]
        assert phantoms.main([*argv, "--seed", str(count)]) == 0
        with (part / "labels.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        if part != folder:  # file names tell films apart, so those of two folders differ
            for row in rows:
                name = row["image"].replace("images/", "images/small_")
                (part / row["image"]).rename(part / name)
                row["image"] = name
        prefix = "" if part == folder else "small/"
        table = [
            {
                "image": prefix + row["image"], "patient_id": row["patient_id"],
                "view": row["view"], "source": source,
                **{name: row.get(name, "0") for name in names},
                "Tuberculosis": row["Nodule"] if part == folder else "",
            }
            for row in rows
        ]  # fmt: skip
        with (part / "labels.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return folder
