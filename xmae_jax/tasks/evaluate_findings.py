"""Score the findings that a run tells, or that stand in a file of predictions.

Each split's scores, predictions and page go to `eval/classification_<split>/step_<n>/` of the run,
those of other data than its own to `eval/classification_<split>_<digest of the data>/`.
Those of "test" hold the films of "val" too, on which thresholds and temperatures are chosen, so
that the file alone gives all the numbers again.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from xmae_jax import infer, writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.evaluators.classification import Classification, comparison_table, table
from xmae_jax.evaluators.page import results_page
from xmae_jax.scores.compare import compare
from xmae_jax.scores.predictions import Predictions, from_csv
from xmae_jax.scores.summary import CHOSEN_ON, summarise
from xmae_jax.tasks import trained_on
from xmae_jax.tasks.held_out import Model, newest, open_held_out, place, read_text, splits_of
from xmae_jax.tasks.model import LoadedRun

NAME = "classification"


def run(loaded: LoadedRun, config: Config, *, split: str | None, against: Path | None) -> None:
    """Score a run on `split`, or on "val" and "test" as far as there; see evaluate.py."""
    workdir = loaded.workdir
    own = trained_on.is_own(loaded, config)
    learnt = trained_on.learnt_splits(workdir, dataclasses.asdict(loaded.config.data))
    scored = splits_of(config, split, learnt=learnt if own else ())
    names = dict.fromkeys((CHOSEN_ON, *scored))
    held = {name: one for name in names if (one := open_held_out(config, loaded.objective, name))}
    # A refitted head says nothing of films that it was trained on: what it said before holds.
    before = _before_refit(workdir, loaded.step) if own and CHOSEN_ON in learnt[1:] else None
    rows = {} if before is None else {CHOSEN_ON: before}
    checked = trained_on.check(loaded, config, [name for name in held if name not in rows])
    evaluator = Classification(
        loaded.objective.findings,
        {name: one.entries for name, one in held.items()},
        train_positive=checked.positive,
    )
    model = Model(loaded, config)
    rows |= {
        name: list(model.rows(one, "logits", "labels"))
        for name, one in held.items()
        if name not in rows
    }
    for name in scored:
        splits = {
            one: rows[one].__iter__ for one in dict.fromkeys((CHOSEN_ON, name)) if one in rows
        }
        metrics, text = evaluator.evaluate(splits)
        metrics["about"] = {
            **trained_on.about(loaded, config, name, checked),
            "refitted_on": CHOSEN_ON if before is not None else None,
            "unreadable_films": len(held[name].films) - len(rows[name]),
        }
        digest = trained_on.data_digest(config)
        folder = (
            workdir / "eval" / place(NAME, name, None if own else digest) / f"step_{loaded.step}"
        )
        writers.write_atomic(folder / "predictions.csv", text)
        predictions = from_csv(text, name="predictions.csv")
        _tell(predictions, metrics, against=against, folder=folder, digest=digest)


def _before_refit(workdir: Path, step: int) -> list[infer.Row]:
    """Read what a probe's head said of validation before it was trained on it; else nothing."""
    file = workdir / "eval" / place(NAME, "test", None) / f"step_{step}" / "predictions.csv"
    if not file.is_file():
        print(f"note: the head was trained on {CHOSEN_ON!r} after it was chosen, and what it said"
              " before is not there: no thresholds, no temperatures")  # fmt: skip
        return []
    print(f"note: the head was trained on {CHOSEN_ON!r} after it was chosen; thresholds and"
          " temperatures are from what it said before")  # fmt: skip
    said = _read(file).of_split(CHOSEN_ON)
    return [
        {"logits": logits, "labels": labels, "id": np.array([film.source_index, film.place])}
        for film, logits, labels in zip(said.films, said.logits, said.labels, strict=True)
    ]


def run_file(file: Path, *, split: str | None, against: Path | None, folder: Path | None) -> None:
    """Score a file of findings, and write what comes of it if there is a folder for it."""
    predictions = _read(file)
    there = list(dict.fromkeys(film.split for film in predictions.films))
    if split is not None and split not in there:
        raise ConfigError(f"--split={split}: {file} has {', '.join(there) or 'no film'}")
    for name in there if split is None else [split]:
        metrics = summarise(predictions, name)
        metrics["about"] = {"predictions": str(file)}
        own = folder and folder / place(NAME, name, None)
        _tell(predictions, metrics, against=against, folder=own, digest=None)


def _tell(
    predictions: Predictions,
    metrics: dict[str, Any],
    *,
    against: Path | None,
    folder: Path | None,
    digest: str | None,
) -> None:
    """Compare, print and write one split's scores."""
    print(table(metrics))
    if against is not None:
        file = newest(NAME, against, metrics["split"], digest=digest)
        other = compare(predictions, _read(file), metrics["split"])
        metrics["against"] = {"file": str(file), **other}
        print(comparison_table(metrics["against"]))
    if folder is not None:
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        writers.write_atomic(folder / "report.html", results_page(predictions, metrics))
        print(f"report: {folder / 'report.html'}")


def _read(file: Path) -> Predictions:
    return from_csv(read_text(file), name=str(file))
