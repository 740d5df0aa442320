"""Recognise findings on real films in five patient folds: tuberculosis, and 14 findings of NIH.

    python -m benchmarks.recognition_real --films FILMS --work DIR [--smoke]

FILMS is laid out as docs/data.md says: `labels.csv` with tuberculosis films of Shenzhen and
Montgomery and whatever else there is, and `small/labels.csv` with small films of NIH. For each fold
an encoder is pre-trained on every film of FILMS but the fold's (left out by
`data_prep.build --exclude`), and a linear probe and GLoRI are trained on it and on an encoder of
random weights; a logistic regression on 64 x 64 pixels stands beside them.  AUROC is that of each fold, averaged, since scores of two models do not compare; its
interval is that of 1,000 samples of patients. Rate and decay are chosen on the next fold.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import probing
from xmae_jax.data.findings import FINDINGS, place_of
from xmae_jax.data.records import SPLITS, Records, decode_image
from xmae_jax.scores.predictions import Predictions
from xmae_jax.scores.ranking import point, rank

FOLDS = 5
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
DIFFERENCES = (
    ("pre-trained - random", "linear_pretrained", "linear_random"),
    ("pre-trained - pixels", "linear_pretrained", "pixels"),
)
TASKS = {
    "tuberculosis": ("Tuberculosis",),
    "nih": (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema",
        "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia",
        "Pneumothorax",
    ),
}  # fmt: skip
Row = dict[str, str]


def read_table(films: Path) -> list[Row]:
    """List all films of both tables; `path` is where a film lies, `task` what it is scored for."""
    rows = []
    for table in (films / "labels.csv", films / "small" / "labels.csv"):
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                path = films / row["image"]
                task = ""
                if row["Tuberculosis"] and row["source"].startswith("NLM "):
                    task = "tuberculosis"
                elif table.parent != films and row["source"].startswith("NIH"):
                    task = "nih"
                mask = films / "lung_masks" / f"{path.stem}.png"
                has_mask = table.parent == films and mask.is_file()
                rows.append({**row, "path": str(path), "task": task,
                             "mask_path": str(mask) if has_mask else ""})  # fmt: skip
    return rows


def assign_folds(rows: Sequence[Row]) -> dict[str, int]:
    """Put each patient in a fold: patients with many films first, each where its kind is rarest.

    A kind is source and label of tuberculosis; NIH has one.
    """
    films: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        films[row["patient_id"]].append(row)
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * FOLDS)
    folds = {}
    for patient in sorted(films, key=lambda name: (-len(films[name]), name)):
        own = films[patient]
        kind = f"{own[0]['source']} {own[0]['Tuberculosis']}"
        fold = min(
            range(FOLDS), key=lambda f: (counts[kind][f], sum(c[f] for c in counts.values()))
        )
        counts[kind][fold] += len(own)
        folds[patient] = fold
    return folds


def lay_out(rows: Iterable[Row], folder: Path, split_of: Callable[[Row], str]) -> None:
    """Make an input of `data_prep.build` of some films."""
    for name in ("images", "lung_masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    findings = sorted({name for names in TASKS.values() for name in names})
    table = []
    for row in rows:
        path = Path(row["path"])
        _put(path, folder / "images" / path.name)
        if row["mask_path"]:
            _put(Path(row["mask_path"]), folder / "lung_masks" / f"{path.stem}.png")
        table.append({
            "image": f"images/{path.name}", "patient_id": row["patient_id"], "view": row["view"],
            "source": row["task"] or "other", "split": split_of(row),
            **{name: row[name] for name in findings},
        })  # fmt: skip
    with (folder / "labels.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def _put(source: Path, place: Path) -> None:
    if place.exists():
        return
    try:
        os.link(source, place)
    except OSError:
        shutil.copy(source, place)


def make_fold(rows: Sequence[Row], folds: dict[str, int], fold: int, work: Path) -> Path:
    """Make the shards of a fold: its test films, all others, and one set for each task's probe."""
    here = work / f"fold{fold}"

    def split_of(row: Row) -> str:
        own = folds.get(row["patient_id"])
        return {fold: "test", (fold + 1) % FOLDS: "val"}.get(own, "train")

    key = ("--key", str(work / "key"))
    held_out = [row for row in rows if row["task"] and split_of(row) == "test"]
    lay_out(held_out, here / "held_out" / "films", lambda _: "test")
    manifest = probing.build(here / "held_out", *key) / "manifest.json"
    lay_out(rows, here / "others" / "films", lambda _: "train")
    probing.build(here / "others", *key, "--exclude", str(manifest))
    for task in TASKS:
        lay_out([row for row in rows if row["task"] == task], here / task / "films", split_of)
        probing.build(here / task, *key)
    return here


def pixels(shards: Path, like: Predictions) -> Predictions:
    """Score the test films by logistic regressions on their pixels, one for each finding.

    The decay is chosen on "val" for each finding, and the model fitted again on both.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    columns = [place_of(name) for name in like.findings]
    films, labels = {}, {}
    for name in SPLITS:
        records = list(Records(shards, name))
        films[name] = np.stack([decode_image(r["image"]).ravel() / 255.0 for r in records])
        labels[name] = np.stack([r["labels"][columns] for r in records])
    both = np.concatenate([films["train"], films["val"]])
    # As many components as films span: a turn of the axes, which a ridge penalty does not see.
    turn = PCA().fit((both - both.mean(0)) / (both.std(0) + 1e-6))
    x = {n: turn.transform((f - both.mean(0)) / (both.std(0) + 1e-6)) for n, f in films.items()}
    logits = np.zeros_like(like.logits)
    for c in range(len(columns)):

        def fitted(penalty: float, names: Sequence[str], c: int = c):
            truth = np.concatenate([labels[name][:, c] for name in names])
            if len(set(truth)) < 2:
                return None
            model = LogisticRegression(C=penalty, max_iter=500)
            return model.fit(np.concatenate([x[name] for name in names]), truth)

        def chosen(penalty: float, c: int = c) -> float:
            model, truth = fitted(penalty, ["train"]), labels["val"][:, c] == 1
            if model is None:
                return 0.0
            return point(rank(model.decision_function(x["val"]), truth))[0] or 0.0

        model = fitted(max(PENALTIES, key=chosen), ["train", "val"])
        if model is not None:
            logits[:, c] = model.decision_function(x["test"])
    return dataclasses.replace(like, logits=logits[[film.place for film in like.films]])


def score(task: str, predictions: dict[str, list[Predictions]]) -> tuple[str, dict]:
    """Return the table of a task and all that it is made of: numbers of films and scores."""
    scores = {arm: probing.auroc(parts) for arm, parts in predictions.items()}
    findings = [*next(iter(scores.values()))] if task == "nih" else [*TASKS[task]]
    shown = [name for name in findings if name in (*TASKS["tuberculosis"], "macro")]
    lines = ["| | AUROC | 95 % | each fold |", "|---|---|---|---|"]
    apart = {}
    for finding in shown:
        for arm, one in scores.items():
            lines.append(probing.line(f"{task}, {finding}: {arm}", one[finding]))
        for name, first, second in DIFFERENCES:
            gap = probing.difference(scores[first][finding], scores[second][finding])
            lines.append(probing.line(f"{task}, {finding}: {name}", gap, sign="+"))
            apart[name] = probing.told(gap)
    parts = next(iter(predictions.values()))
    films = sum(len(part.films) for part in parts)
    labels = np.concatenate([part.labels for part in parts])
    names = parts[0].findings
    told = {
        "films": films,
        "patients": sum(len({film.patient for film in part.films}) for part in parts),
        "positives": {name: int((labels[:, c] == 1).sum()) for c, name in enumerate(names)},
        "scores": {
            arm: {finding: probing.told(of[finding]) for finding in findings}
            for arm, of in scores.items()
        },
        "differences": apart,
    }
    return "\n".join(lines), told


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--smoke", action="store_true", help="a few steps, which mean nothing")
    args = parser.parse_args(argv)
    rows = read_table(args.films)
    folds = assign_folds([row for row in rows if row["task"]])
    steps, probe_steps = (4, 4) if args.smoke else (1200, 400)
    predictions: dict[str, dict[str, list[Predictions]]] = {task: {} for task in TASKS}
    for fold in range(FOLDS):
        here = make_fold(rows, folds, fold, args.work)
        shards = here / "others" / "shards"
        encoder = probing.pretrain(shards, here / "encoder", seed=fold, steps=steps)
        for task, findings in TASKS.items():
            names = tuple(FINDINGS[place_of(name)] for name in findings)
            arms = {}
            for start, weights in (("pretrained", encoder), ("random", None)):
                arms[f"linear_{start}"] = probing.probe(
                    "linear", here / task / "shards", here / f"{task}_linear_{start}",
                    encoder=weights, seed=fold, total_steps=probe_steps, batch_size=32,
                    objective__findings=names,
                )  # fmt: skip
            arms["pixels"] = pixels(here / task / "shards", arms["linear_random"])
            for arm, found in arms.items():
                predictions[task].setdefault(arm, []).append(found)
    tables, scores = [], {}
    for task, arms in predictions.items():
        table, scores[task] = score(task, arms)
        tables.append(table)
    (args.work / "table.md").write_text("\n\n".join(tables) + "\n")
    (args.work / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
