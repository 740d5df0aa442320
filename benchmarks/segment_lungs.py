"""The lung model: choose its films, train it in folds by patient, score it, and export it.

    python -m benchmarks.segment_lungs --films DIR --work DIR [--fold N | --final]  train
    python -m benchmarks.segment_lungs --films DIR --work DIR --score               the table
    python -m benchmarks.segment_lungs --export RUN                                 ship a run

DIR of films: `images/`, `lung_masks/` and a labels.csv with `mask_source`, `licence` and
`mask_licence`. What is shipped may have been trained only on films and masks whose licences both
allow commercial redistribution; all others are test films. A film is scored by the fold that has
seen no film of its patient.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDS = 3
LICENCES = {"NLM-public-use (cite Jaeger 2014)", "CC BY", "CC BY 3.0", "CC BY 4.0"}
MASK_LICENCES = {"NLM-public-use", "CC-BY-4.0"}
SOURCES = ("montgomery-manual", "v7-darwin-human")
PHANTOMS = 1200
SIDE = 320


@dataclass(frozen=True)
class FilmRow:
    """A film with a mask."""

    image: Path
    mask: Path
    source: str
    patient: str
    view: str
    allowed: bool
    fold: int


def read_films(folder: Path) -> list[FilmRow]:
    """List films that have a mask, each with its fold: patients of a source, dealt by hash."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mask"]]
    films = []
    for source in sorted({row["mask_source"] for row in rows}):
        own = [row for row in rows if row["mask_source"] == source]
        patients = sorted(
            {row["patient_id"] for row in own}, key=lambda p: hashlib.sha256(p.encode()).digest()
        )
        films += [
            FilmRow(
                image=folder / row["image"],
                mask=folder / row["mask"],
                source=source,
                patient=row["patient_id"],
                view=row["view"],
                allowed=row["licence"] in LICENCES and row["mask_licence"] in MASK_LICENCES,
                fold=patients.index(row["patient_id"]) % FOLDS,
            )
            for row in own
        ]
    return films


def training_films(films: list[FilmRow], fold: int | None) -> list[FilmRow]:
    """List what a fold's model may see; None leaves no fold out."""
    held_out = {film.patient for film in films if film.fold == fold}
    return [film for film in films if film.allowed and film.patient not in held_out]


def build(films: list[FilmRow], folder: Path) -> Path:
    """Make shards of films whose every record is for training."""
    shards = folder / "shards"
    if shards.exists():
        return shards
    for name in ("images", "lung_masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table = ["image,patient_id,view,source,mask_source,split"]
    for film in films:
        shutil.copy(film.image, folder / "images")
        shutil.copy(film.mask, folder / "lung_masks")
        table.append(
            f"images/{film.image.name},{film.patient},{film.view},{film.source},{film.source},train"
        )
    (folder / "labels.csv").write_text("\n".join(table) + "\n")
    return _build(folder, shards)


def _build(folder: Path, shards: Path) -> Path:
    command = [sys.executable, "-m", "data_prep.build", "--input", str(folder)]
    command += ["--output", str(shards), "--size", str(SIDE), "--fit", "squash"]
    subprocess.run([*command, "--lungs", "given", "--workers", "1"], check=True)
    return shards


def phantoms(folder: Path) -> Path:
    """Draw phantoms and make shards of them."""
    shards = folder / "shards"
    if not shards.exists():
        command = [sys.executable, "-m", "data_prep.phantoms", "--output", str(folder / "films")]
        command += ["--count", str(PHANTOMS), "--seed", "11", "--size", str(SIDE)]
        subprocess.run([*command, "--workers", "1"], check=True)
        _build(folder / "films", shards)
    return shards


def train(films: list[FilmRow], work: Path, fold: int | None, extra: list[str]) -> Path:
    """Train one fold, or the model to ship."""
    name = "final" if fold is None else f"fold{fold}"
    paths = [phantoms(work / "phantoms")]
    for source in SOURCES:
        chosen = [film for film in training_films(films, fold) if film.source == source]
        paths.append(build(chosen, work / name / source))
    run = work / name / "run"
    data = ",".join(f"'{path}'" for path in paths)
    command = [sys.executable, "-m", "xmae_jax.main", "--config=configs/segment_lungs.py"]
    command += [f"--workdir={run}", f"--config.data.path=({data})", "--config.data.eval_split=None"]
    subprocess.run([*command, *extra], check=True)
    return run


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segment_lungs")
    parser.add_argument("--films", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--fold", type=int, choices=range(FOLDS))
    parser.add_argument("--final", action="store_true")
    args, extra = parser.parse_known_args(argv)
    films = read_films(args.films)
    print(train(films, args.work, args.fold, extra))
    return 0


if __name__ == "__main__":
    sys.exit(main())
