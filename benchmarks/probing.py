"""What the benchmarks of frozen probes share: shards, pre-training, probes, paired intervals."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from xmae_jax.scores.bootstrap import interval, mean_of_defined, replicate
from xmae_jax.scores.predictions import Predictions, from_csv
from xmae_jax.scores.ranking import rank, scores_of

SIDE = 64
PRETRAIN = {
    # 64 patches of 8 px: a step takes 0.1 s of one CPU core.
    "image_size": SIDE,
    "objective.encoder.patch_size": 8,
    "objective.encoder.width": 128,
    "objective.encoder.depth": 4,
    "objective.encoder.heads": 4,
    "objective.encoder.base_grid": 8,
    "objective.decoder.width": 64,
    "objective.decoder.depth": 1,
    "objective.decoder.heads": 2,
    "objective.mask.keep": 16,
    "objective.norm_pix_loss": True,
    "objective.ema_decay": None,
    "batch_size": 32,
    "warmup_steps": 60,
    "log_every": 100,
    "checkpoint_every": 1_000_000,
    "picture_every": 1_000_000,
    "data.eval_split": None,
    "optim.blr": 1e-3 * 256 / 32,
}
PROBES = {
    "linear": {"objective.head.pool": "cls_mean", "objective.head.layers": 4},
    "glori": {
        "objective.head.layers": 4,
        "objective.head.width": 64,
        "objective.head.heads": 4,
        "objective.head.hidden": 128,
        # Each costs as much as the encoder's features; a linear probe tries the config's 13. On
        # other phantoms lower ones were best for a pre-trained encoder, the highest for a random.
        "probe.grid.blr": (0.002, 0.004, 0.008, 0.08),
    },
}


def run(*command: str) -> None:
    """Run a module; its output is shown only if it fails."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def train(config: str, workdir: Path, settings: Mapping[str, object]) -> None:
    """Run a config with other settings, unless that run is finished."""
    if (workdir / "final.json").exists():
        return
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    print(f"{workdir}: {config}", flush=True)
    run("xmae_jax.main", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags)


def rows_of(films: Path) -> list[dict[str, str]]:
    """Read the table of films."""
    with (films / "labels.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def write_rows(films: Path, rows: list[dict[str, str]]) -> None:
    """Write the table of films, whole or not at all."""
    part = films / "labels.csv.part"
    with part.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(films / "labels.csv")


def split(films: Path, *, train: int, val: int) -> None:
    """Put so many of ten patients of phantoms into "train" and "val", the others into "test"."""
    rows = rows_of(films)
    for row in rows:
        turn = int(row["patient_id"].rpartition("-")[2]) % 10
        row["split"] = "train" if turn < train else "val" if turn < train + val else "test"
    write_rows(films, rows)


def build(folder: Path, *more: str, side: int = SIDE) -> Path:
    """Make `shards` of the `films` in a folder, unless they are there."""
    shards = folder / "shards"
    if not (shards / "manifest.json").exists():
        places = ("--input", str(folder / "films"), "--output", str(shards))
        run("data_prep.build", *places, "--size", str(side), "--lungs", "given", *more)
    return shards


def pretrain(
    shards: Path, workdir: Path, *, seed: int, steps: int, settings: Mapping[str, object] = {}
) -> Path:
    """Pre-train a small encoder; `settings` come before those of PRETRAIN."""
    more = {"data.path": shards, "seed": seed, "total_steps": steps}
    train("quickstart", workdir, {**PRETRAIN, **settings, **more})
    return workdir


def probe(
    head: str, shards: Path, workdir: Path, *, encoder: Path | None, **settings: object
) -> Predictions:
    """Train a head on a frozen encoder, or on a random one; return what it says of "test".

    Rate and decay are chosen on "val"; settings: `total_steps` and others of the config, a double
    underscore for a dot.
    """
    fixed = {name: value for name, value in PRETRAIN.items() if name.startswith("objective.enc")}
    more = {name.replace("__", "."): value for name, value in settings.items()}
    train(
        f"finetune_{head}",
        workdir,
        {
            "image_size": SIDE,
            "compute_dtype": "float32",
            "data.path": shards,
            "init_from": encoder,
            "log_every": 100,
            "checkpoint_every": 1_000_000,
            **fixed,
            **PROBES[head],
            **more,
        },
    )
    (table,) = workdir.glob("eval/classification_test/step_*/predictions.csv")
    return from_csv(table.read_text(), name=str(table)).of_split("test")


class Score(NamedTuple):
    """A mean AUROC over parts, each part's own, and the mean in each sample of patients."""

    mean: float
    parts: Float64[np.ndarray, " p"]
    draws: Float64[np.ndarray, " r"]

    @property
    def interval(self) -> list[float] | None:
        """Return the central 95 % of the samples."""
        return interval(self.draws)


def auroc(parts: Sequence[Predictions]) -> dict[str, Score]:
    """Average each finding's AUROC over parts (seeds on one set of films, or folds of patients).

    The samples of patients are the same for all parts, and for every call on the same films. A
    part in which a finding is one-sided is left out of its mean. "macro" is the mean of findings.
    """
    names = sorted({film.patient for part in parts for film in part.films})
    number = {name: place for place, name in enumerate(names)}
    findings, ranks = parts[0].findings, []
    for part in parts:
        patients = np.array([number[film.patient] for film in part.films])
        for c in range(len(findings)):
            known = part.known[:, c]
            ranks.append(rank(part.logits[known, c], part.labels[known, c] == 1, patients[known]))
    draws = replicate(ranks, patients=len(names))[:, 0]
    each = np.stack([scores_of(one, np.ones((1, len(one.patients)), int))[0] for one in ranks])
    shape = (len(parts), len(findings), -1)
    draws, each = draws.reshape(shape), each.reshape(shape)
    means, samples = (
        np.stack([mean_of_defined(values[:, c]) for c in range(len(findings))])
        for values in (each, draws)
    )
    out = {
        name: Score(float(means[c, 0]), each[:, c, 0], samples[c])
        for c, name in enumerate(findings)
    }
    macro = mean_of_defined(means)[0], mean_of_defined(each.swapaxes(0, 1)[:, :, 0])
    out["macro"] = Score(float(macro[0]), macro[1], mean_of_defined(samples))
    return out


def difference(one: Score, other: Score) -> Score:
    """Subtract, sample by sample of patients."""
    return Score(one.mean - other.mean, one.parts - other.parts, one.draws - other.draws)


def told(score: Score) -> dict[str, Any]:
    """Return what a table says of a score, for JSON."""
    parts = [None if np.isnan(part) else round(float(part), 4) for part in score.parts]
    bounds = score.interval
    return {
        "auroc": None if np.isnan(score.mean) else round(score.mean, 4),
        "interval": bounds and [round(bound, 4) for bound in bounds],
        "parts": parts,
    }


def line(name: str, score: Score, *, sign: str = "") -> str:
    """Write a line of a table in Markdown: mean, interval, and each part."""
    if score.interval is None:
        return f"| {name} | undefined | | |"
    low, high = (f"{bound:{sign}.3f}" for bound in score.interval)
    parts = ", ".join("-" if np.isnan(part) else f"{part:{sign}.3f}" for part in score.parts)
    return f"| {name} | {score.mean:{sign}.3f} | {low} to {high} | {parts} |"
