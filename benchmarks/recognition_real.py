"""Recognise findings on real films in five patient folds: tuberculosis, and 14 findings of NIH.

    python -m benchmarks.recognition_real --films FILMS --work DIR [--smoke]

FILMS is laid out as docs/data.md says: `labels.csv` with tuberculosis films of Shenzhen and
Montgomery and whatever else there is, and `small/labels.csv` with small films of NIH, all of them
under names of their own. For each fold a small encoder is pre-trained on every film of FILMS but
those of the fold's patients, who are left out by
`data_prep.build --exclude`, and frozen. Logistic regressions on its CLS tokens and mean patch, on
those of an encoder of random weights, and on the 64 x 64 pixels themselves, are compared; their
penalty is chosen on the next fold. AUROC is that of each fold, averaged, since scores of two models
do not compare; its interval is that of 1,000 samples of patients.
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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from benchmarks import probing
from xmae_jax import rng
from xmae_jax.data.findings import place_of
from xmae_jax.data.records import SPLITS, Records, decode_image
from xmae_jax.objectives.mae import normalise
from xmae_jax.optim import merge
from xmae_jax.scores.predictions import Film, Predictions
from xmae_jax.scores.ranking import point, rank
from xmae_jax.tasks.model import load_run

FOLDS = 5
STEPS = 500
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DIFFERENCES = (
    ("pre-trained - random", "pre-trained", "random"),
    ("pre-trained - pixels", "pre-trained", "pixels"),
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


@dataclasses.dataclass(frozen=True)
class Films:
    """The films of one split of a task."""

    pixels: UInt8[np.ndarray, "n s s"]
    labels: Float32[np.ndarray, "n c"]
    patients: tuple[str, ...]


def read_films(shards: Path, split: str, findings: Sequence[str]) -> Films:
    """Decode a split."""
    records, columns = list(Records(shards, split)), [place_of(name) for name in findings]
    return Films(
        np.stack([decode_image(record["image"]) for record in records]),
        np.stack([record["labels"][columns] for record in records]),
        tuple(record["patient"] for record in records),
    )


def encoder_of(run: Path, seed: int | None) -> Callable[[Films], Float[np.ndarray, "n d"]]:
    """Return what an encoder's CLS tokens of four blocks and mean patch are, of a run's encoder.

    With a seed, of random weights in its place.
    """
    loaded = load_run(run)
    objective, params = loaded.objective, merge(loaded.params, loaded.frozen)
    if seed is not None:
        params = objective.init(rng.key(seed, "init"))

    @jax.jit
    def pooled(params, image):
        features = objective.model(params, {}).encoder(normalise(image), last=4)
        return jnp.concatenate([*(c for c, _ in features.layers), features.patches.mean(1)], 1)

    def encode(films: Films) -> Float[np.ndarray, "n d"]:
        image, many = films.pixels[..., None], len(films.pixels)
        image = np.concatenate([image, np.zeros((-many % 64, *image.shape[1:]), np.uint8)])
        parts = [np.asarray(pooled(params, image[i : i + 64])) for i in range(0, len(image), 64)]
        return np.concatenate(parts)[:many]

    return encode


def probe(
    films: dict[str, Films], of: Callable[[Films], Float[np.ndarray, "n d"]], names: Sequence[str]
) -> Predictions:
    """Score the test films by logistic regressions, one for each finding, on what is made of films.

    The penalty is chosen on "val" for each finding, and the model fitted again on both.
    """
    raw = {name: of(own) for name, own in films.items()}
    both = np.concatenate([raw["train"], raw["val"]])
    centre, spread = both.mean(0), both.std(0) + 1e-6
    # As many components as films span: a turn of the axes, which the penalty does not see.
    turn = PCA().fit((both - centre) / spread)
    x = {name: turn.transform((values - centre) / spread) for name, values in raw.items()}
    logits = np.zeros(films["test"].labels.shape)
    for c in range(logits.shape[1]):
        truth = {name: own.labels[:, c] == 1 for name, own in films.items()}

        def fitted(penalty: float, *splits: str, truth: Any = truth) -> Any:
            y = np.concatenate([truth[name] for name in splits])
            model = LogisticRegression(C=penalty, max_iter=500)
            return (
                None
                if y.all() or not y.any()
                else model.fit(np.concatenate([x[name] for name in splits]), y)
            )

        def chosen(penalty: float, truth: Any = truth, fitted: Any = fitted) -> float:
            model = fitted(penalty, "train")
            if model is None:
                return 0.0
            scores = model.decision_function(x["val"]).astype(np.float64)
            return point(rank(scores, truth["val"]))[0] or 0.0

        model = fitted(max(PENALTIES, key=chosen), "train", "val")
        if model is not None:
            logits[:, c] = model.decision_function(x["test"])
    test = films["test"]
    rows = tuple(
        Film("test", 0, i, str(i), patient, "", "", "", "", np.nan)
        for i, patient in enumerate(test.patients)
    )
    return Predictions(tuple(names), rows, logits, test.labels.astype(np.float64))


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
    steps = 4 if args.smoke else STEPS
    predictions: dict[str, dict[str, list[Predictions]]] = {task: {} for task in TASKS}
    for fold in range(FOLDS):
        here = make_fold(rows, folds, fold, args.work)
        shards = here / "others" / "shards"
        encoder = probing.pretrain(shards, here / "encoder", seed=fold, steps=steps)
        makers = {
            "pre-trained": encoder_of(encoder, None),
            "random": encoder_of(encoder, fold),
            "pixels": lambda films: films.pixels.reshape(len(films.pixels), -1) / 255.0,
        }
        for task, findings in TASKS.items():
            shards = here / task / "shards"
            films = {split: read_films(shards, split, findings) for split in SPLITS}
            for arm, of in makers.items():
                found = probe(films, of, findings)
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
