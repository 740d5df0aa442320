"""Reports of unseen phantom patients: findings, their sides, and what is left with films shuffled.

Command:  python -m benchmarks.report_phantoms           (half an hour on two cores)
          python -m benchmarks.report_phantoms --smoke     (three minutes)

Draws the frontal films of 5,000 studies, trains a small hybrid encoder for the seven findings,
freezes it, and trains a T5 decoder on its patches for reports that begin with the impression; each
sentence of their findings has twenty templates. Scored is what it writes of the test patients. Then
the same run is scored on the same studies with each film in the place of another patient's: where
that is better than chance, something beside the film tells the model what to write. Writes
`table.md` and `scores.json`, with the seconds of each stage that had still to be done.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks import probing
from configs.common import PHANTOMS
from data_prep.phantom_anatomy import draw_study, locate
from xmae_jax.scores import bootstrap
from xmae_jax.scores.agreement import NAMES, labelled, side_agreement
from xmae_jax.scores.reports import Reports, from_csv

# Films drawn at SIDE would have the noise of films of 512 px in fewer pixels.
DRAWN, SIDE = 512, 128
STUDIES = 5000
FIND_STEPS, WRITE_STEPS = 8500, 1500
ENCODER = {
    "stem": "hybrid",
    "patch_size": 16,
    "width": 128,
    "depth": 2,
    "heads": 4,
    "base_grid": 8,
    # Blocks begin as nothing, so that at first the convolutions learn alone.
    "layer_scale": 0.01,
}
BATCH = 32
SHARED = {
    "image_size": SIDE,
    "compute_dtype": "float32",
    "batch_size": BATCH,
    "log_every": 50,
    "checkpoint_every": 1_000_000,
    "eval_every": 1_000_000,
    "picture_every": 1_000_000,
    **{f"objective.encoder.{name}": value for name, value in ENCODER.items()},
}
AUGMENT = dict(
    rotate=4.0, scale=0.05, stretch=0.0, shift=0.04, mirror=0.5, gamma=0.25, contrast=0.0,
    invert=0.0, noise=0.0, blur=0.0, haze=0.0,
)  # fmt: skip
FIND = {
    **SHARED,
    "objective.findings": PHANTOMS,
    "objective.head.pool": "mean_max",
    "objective.drop_path": 0.0,
    "optim.blr": 2e-3 * 256 / BATCH,
    "optim.layer_decay": 1.0,
    # At the rate of convolutions blocks drown what these find.
    "optim.rates": ((".*/blocks/.*", 0.1),),
    "data.crop_scale": None,
    "data.augment": AUGMENT,
}
WRITE = {
    **SHARED,
    "objective.head.decoder.vocab": 600,
    "objective.head.decoder.width": 128,
    "objective.head.decoder.depth": 2,
    "objective.head.decoder.heads": 4,
    "objective.head.decoder.head_width": 32,
    "objective.head.decoder.hidden": 256,
    "objective.head.decoder.dropout": 0.0,
    "objective.label_smoothing": 0.0,
    # The impression has one way to say what the findings say in twenty, of which none is likely:
    # a search for the likeliest text would rather leave an uncertain finding out.
    "data.text.sections": ("impression", "findings"),
    # The longest of a hundred reports, and no indication.
    "data.text.length": 152,
    "objective.generate.max_new": 152,
    "data.text.prefix_length": 2,
    "data.text.views": 1,
    "data.augment": {**AUGMENT, "mirror": 0.0},
    "optim.blr": 2e-3 * 256 / BATCH,
    "optim.freeze": ("encoder/.*",),
    "optim.rates": (),
    # As the findings learn from the impression, gradients are large for a hundred steps.
    "guard.spike_sigma": None,
}


def films_of(series: int, *, studies: int) -> int:
    """Count the films of a series up to so many studies."""
    seen: set[tuple[int, int]] = set()
    for film in itertools.count():
        patient, place = locate(series, film)
        seen.add((patient, draw_study(series, patient, place)[0].index))
        if len(seen) > studies:
            return film
    raise AssertionError("a series has no end")


def draw(folder: Path, *, studies: int, series: int) -> None:
    """Draw films, keep frontal ones; eight of ten patients train, one chooses, one is scored."""
    films = folder / "films"
    if not (films / "labels.csv").exists():
        count = films_of(series, studies=studies)
        many = ("--count", str(count), "--seed", str(series), "--size", str(DRAWN))
        probing.run("data_prep.phantoms", "--output", str(films), *many)
    rows = probing.rows_of(films)
    # Findings look otherwise on a lateral film, and the decoder reads one film a study. A film that
    # no row names would be built all the same, so the films go first.
    for row in rows:
        if row["view"] == "LATERAL":
            for kind in ("images", "lung_masks"):
                (films / kind / Path(row["image"]).name).unlink(missing_ok=True)
    probing.write_rows(films, [row for row in rows if row["view"] != "LATERAL"])
    probing.split(films, train=8, val=1)


def shuffle(folder: Path) -> Path:
    """Make shards of the test studies in which each has the film of another patient."""
    films, there = folder / "films", folder / "shuffled" / "films"
    if not (there / "labels.csv").exists():
        with (folder / "shards" / "rejected.csv").open(newline="") as lines:
            rejected = {Path(row["file"]).name for row in csv.DictReader(lines)}
        rows = [
            row
            for row in probing.rows_of(films)
            if row["split"] == "test" and Path(row["image"]).name not in rejected
        ]
        for kind in ("images", "lung_masks"):
            (there / kind).mkdir(parents=True, exist_ok=True)
        for row, other in zip(rows, np.roll(np.arange(len(rows)), len(rows) // 2), strict=True):
            for kind in ("images", "lung_masks"):
                name, film = (Path(one["image"]).name for one in (row, rows[other]))
                shutil.copyfile(films / kind / film, there / kind / name)
        shutil.copyfile(films / "reports.csv", there / "reports.csv")
        probing.write_rows(there, rows)
    return probing.build(folder / "shuffled", side=SIDE)


def written(workdir: Path, *more: str) -> Reports:
    """Score the run on "test", or on other data, and return what it wrote there."""
    evaluate = ("--task=evaluate", f"--workdir={workdir}", "--split=test")
    probing.run("xmae_jax.main", *evaluate, *more)
    tables = workdir.glob("eval/report_test*/step_*/predictions.csv")
    table = max(tables, key=lambda one: one.stat().st_mtime_ns)
    return from_csv(table.read_text(), name=str(table))


def part_of(text: str, section: str) -> str:
    """Return a section of a report of two, or "all" of it."""
    impression, _, findings = text.partition("FINDINGS:")
    return {"all": text, "impression": impression, "findings": findings}[section].strip()


def score(reports: Reports, section: str = "all") -> dict[str, Any]:
    """Score what a section says by what was planted, its sides by what the reference's says.

    `chance` is the F1 of texts that say each finding as often as these do, of films at random.
    """
    places = [NAMES.index(name) for name in PHANTOMS]
    texts = [part_of(one.generated, section) for one in reports.studies]
    references = [part_of(one.reference, section) for one in reports.studies]
    said, there = labelled(texts)[:, places] == 1, reports.labels[:, places] == 1  # n c
    marks = np.stack([said & there, said & ~there, ~said & there], axis=-1).astype(np.float64)
    patients = reports.patients()
    people = int(patients.max()) + 1
    drawn = bootstrap.resample_sums(marks.sum(axis=1), patients, people=people)
    sides = side_agreement(texts, references, patients=patients)
    by_luck = said.mean(axis=0) * there.sum(axis=0)  # c
    both = said.sum(axis=0) + there.sum(axis=0)
    return {
        "studies": len(texts),
        "patients": people,
        "f1": f1(marks.sum(axis=(0, 1))),
        "f1_interval": bootstrap.interval(f1(drawn)),
        "chance": 2 * by_luck.sum() / max(both.sum(), 1),
        "sides": {key: value for key, value in sides.items() if key != "findings"},
        "findings": {
            name: {
                "studies": int(there[:, c].sum()),
                "f1": f1(marks[:, c].sum(axis=0)),
                "chance": 2 * by_luck[c] / max(both[c], 1),
                # The labeller counts a nodule as a lesion, where sides are concerned.
                "sides": sides["findings"].get("Lung Lesion" if name == "Nodule" else name),
            }
            for c, name in enumerate(PHANTOMS)
        },
    }


def f1(marks: Float64[np.ndarray, "*s 3"]) -> Any:
    """Return F1 of true positives, false positives and false negatives; 0 where there are none."""
    right, rest = 2 * marks[..., 0], marks[..., 1] + marks[..., 2]
    return right / np.maximum(right + rest, 1)


def table_of(scores: dict[str, Any]) -> str:
    """Write the table in Markdown."""
    true, shuffled = scores["films"], scores["shuffled"]
    lines = [
        "| | with it | F1 | 95 % | sided, told with a side, right | F1, films shuffled | chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in true["findings"].items():
        told, other = one["sides"], shuffled["findings"][name]
        side = f"{told['sided']}, {told['found']}, {told['right']}" if told else ""
        control = f"{other['f1']:.3f} | {other['chance']:.3f}"
        lines.append(f"| {name} | {one['studies']} | {one['f1']:.3f} |  | {side} | {control} |")
    studies = sum(one["studies"] for one in true["findings"].values())
    control = f"{shuffled['f1']:.3f} | {shuffled['chance']:.3f}"
    for name, one, more in (
        (f"all seven, {true['studies']} studies, micro", true, control),
        ("the impression alone", scores["impression"], " | "),
        ("the findings alone", scores["findings"], " | "),
    ):
        sides, bounds = one["sides"], one["f1_interval"]
        share = sides["same"] / max(sides["found"], 1)
        side = f"{sides['sided']}, {sides['found']}, {sides['same']} ({share:.1%})"
        interval = f"{bounds[0]:.3f} to {bounds[1]:.3f}"
        lines.append(f"| {name} | {studies} | {one['f1']:.3f} | {interval} | {side} | {more} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Draw, train, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="runs/report_phantoms_SERIES")
    parser.add_argument("--series", type=int, default=0, help="of phantoms")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    studies, find, write = (120, 8, 8) if args.smoke else (STUDIES, FIND_STEPS, WRITE_STEPS)
    folder = args.folder or Path(f"runs/report_phantoms_{args.series}" + "_smoke" * args.smoke)
    seconds: dict[str, int] = {}

    def timed(name: str, what: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        made = what()
        seconds[name] = round(time.monotonic() - begun)
        return made

    timed("draw", lambda: draw(folder, studies=studies, series=args.series))
    shards = timed("build", lambda: probing.build(folder, "--duplicates", "drop", side=SIDE))
    more = {"data.path": shards, "seed": 0}
    found, run = folder / "findings", folder / "report"
    steps = {"total_steps": find, "warmup_steps": min(300, find // 10)}
    timed("findings", lambda: probing.train("finetune_full", found, {**FIND, **more, **steps}))
    steps = {"total_steps": write, "warmup_steps": min(300, write // 10), "init_from": found}
    timed("report", lambda: probing.train("finetune_report", run, {**WRITE, **more, **steps}))
    reports = timed("evaluate", lambda: written(run))
    scores = {
        "films": score(reports),
        "impression": score(reports, "impression"),
        "findings": score(reports, "findings"),
        "shuffled": score(written(run, f"--config.data.path={shuffle(folder)}")),
        "seconds": seconds,
    }
    (folder / "table.md").write_text(table_of(scores) + "\n")
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(table_of(scores))
    print(", ".join(f"{name} {value} s" for name, value in seconds.items()))


if __name__ == "__main__":
    main()
