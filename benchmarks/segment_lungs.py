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
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import drawings
from xmae_jax.data.film import read_film, read_mask
from xmae_jax.data.lungs import CHANNELS, CONVENTIONS, contour_of, dice, heuristic_lungs
from xmae_jax.tasks.lungs import export_lung_model, load_lung_model

FOLDS = 3
LICENCES = {"NLM-public-use (cite Jaeger 2014)", "CC BY", "CC BY 3.0", "CC BY 4.0"}
MASK_LICENCES = {"NLM-public-use", "CC-BY-4.0"}
SOURCES = ("montgomery-manual", "v7-darwin-human")
PHANTOMS, NOT_FILMS = 1200, 240
MIXTURE = (3, 1, 4, 4)  # rows of a batch: phantoms, pictures that are no films, SOURCES
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


def not_films(folder: Path) -> Path:
    """Draw pictures that are no films, and make shards of them."""
    shards = folder / "shards"
    if shards.exists():
        return shards
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = ["image,patient_id,view,source,split"]
    masks = sorted((folder.parent / "phantoms" / "films" / "lung_masks").glob("*.png"))
    for i, path in enumerate(masks[:NOT_FILMS]):
        kind, picture = drawings.draw(i, np.asarray(Image.open(path)) > 0)
        name = f"images/{kind}_{i:04d}.png"
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / name)
        table.append(f"{name},{name},OTHER,drawn,train")
    (folder / "labels.csv").write_text("\n".join(table) + "\n")
    return _build(folder, shards)


def train(films: list[FilmRow], work: Path, fold: int | None, extra: list[str]) -> Path:
    """Train one fold, or the model to ship."""
    name = "final" if fold is None else f"fold{fold}"
    paths = [phantoms(work / "phantoms"), not_films(work / "not_films")]
    for source in SOURCES:
        chosen = [film for film in training_films(films, fold) if film.source == source]
        paths.append(build(chosen, work / name / source))
    run = work / name / "run"
    data = ",".join(f"'{path}'" for path in paths)
    command = [sys.executable, "-m", "xmae_jax.main", "--config=configs/segment_lungs.py"]
    command += [f"--workdir={run}", f"--config.data.path=({data})", "--config.data.eval_split=None"]
    command += [f"--config.data.mixture={MIXTURE}"]
    subprocess.run([*command, *extra], check=True)
    return run


@dataclass(frozen=True)
class Score:
    """Dice of one film at its own resolution, and the CPU seconds that the model took."""

    source: str
    model: float
    heuristic: float
    seconds: float


def score(films: list[FilmRow], weights: Path) -> list[Score]:
    """Score films as they would be used, in the channel that their masks follow."""
    model, scores = load_lung_model(weights), []
    model(np.zeros((8, 8), np.uint8))  # compiles
    for film in films:
        pixels, mask = read_film(film.image).pixels, read_mask(film.mask)
        channel = CHANNELS.index(CONVENTIONS[film.source])
        start = time.process_time()
        found = contour_of(model(pixels)[:, :, channel], pixels.shape)
        seconds = time.process_time() - start
        guesses = [
            dice(np.asarray(Image.fromarray(guess).resize(mask.shape[::-1])), mask)
            for guess in (found, heuristic_lungs(pixels))
        ]
        scores.append(Score(film.source, *guesses, seconds))
    return scores


def score_folds(films: list[FilmRow], work: Path) -> None:
    """Print the table."""
    films = [film for film in films if film.source in CONVENTIONS]
    groups: dict[str, list[Score]] = {}
    for fold in range(FOLDS):
        weights = work / f"fold{fold}" / "lungs.safetensors"
        export_lung_model(work / f"fold{fold}" / "run", weights=weights)
        own = [film for film in films if film.fold == fold]
        for film, one in zip(own, score(own, weights), strict=True):
            terms = "licence allows training" if film.allowed else "test only"
            for name in (film.source, f"{film.source}, {terms}"):
                groups.setdefault(name, []).append(one)
    print(f"{'source':50} films  channel             mean    median  10th    heuristic")
    for name, scores in sorted(groups.items()):
        values = [one.model for one in scores]
        low, middle = np.percentile(values, (10, 50))
        other = np.mean([one.heuristic for one in scores])
        print(f"{name:50} {len(scores):5d}  {CONVENTIONS[scores[0].source]:16}  ", end="")
        print(f"{np.mean(values):.4f}  {middle:.4f}  {low:.4f}  {other:.4f}")
    seconds = [one.seconds for scores in groups.values() for one in scores]
    middle, high = np.percentile(seconds, (50, 95))
    print(f"a film: {1e3 * middle:.0f} ms, 95th percentile {1e3 * high:.0f} ms")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; what it does not know goes to the training."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segment_lungs")
    parser.add_argument("--films", type=Path, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR")
    parser.add_argument("--fold", type=int, choices=range(FOLDS))
    parser.add_argument("--final", action="store_true", help="train on all films that may be used")
    parser.add_argument("--score", action="store_true", help="score the folds")
    parser.add_argument("--export", type=Path, metavar="RUN", help="ship a run's average")
    args, extra = parser.parse_known_args(argv)
    if args.export:
        export_lung_model(args.export)
        return 0
    if not (args.films and args.work):
        parser.error("--films and --work are needed")
    films = read_films(args.films)
    if args.final or args.fold is not None:
        train(films, args.work, args.fold, extra)
    if args.score:
        score_folds(films, args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
