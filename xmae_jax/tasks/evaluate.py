"""Score the findings of a finished run, or of a file of predictions without any model.

Each split's scores, predictions and page go to `eval/classification_<split>/step_<n>/` of the run.
Those of "test" hold the films of "val" too, on which thresholds and temperatures are chosen, so
that the file alone gives all the numbers again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import infer, rng, sharding, writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow
from xmae_jax.data.index import read_index
from xmae_jax.data.manifest import DataError, load_manifest
from xmae_jax.data.records import SPLITS
from xmae_jax.evaluators.classification import Classification, comparison_table, table
from xmae_jax.evaluators.page import results_page
from xmae_jax.scores.compare import compare
from xmae_jax.scores.predictions import Predictions, PredictionsError, from_csv
from xmae_jax.scores.summary import CHOSEN_ON, summarise
from xmae_jax.tasks.model import LoadedRun, load_run, placed, refuse_other_changes
from xmae_jax.tasks.probe import refitted
from xmae_jax.tasks.split import Split, open_split
from xmae_jax.tasks.train import class_stats, every_row, mesh_of, refuse_leaks

NAME = "classification"


def run(config: Config, workdir: Path, *, split: str | None, against: Path | None) -> None:
    """Score the newest checkpoint of a run on `split`, or on "val" and "test" as far as there.

    `config` is the run's own with another `data` or `mesh`, if so wished. Raises ConfigError
    for a split that is not there, and Leaked where films stand in training too.
    """
    loaded = load_run(workdir)
    refuse_other_changes(config, loaded, task="evaluate")
    if "classify" not in loaded.objective.predict_fns():
        raise ConfigError(f"--workdir={workdir}: objective {config.objective['name']!r} predicts"
                          " no findings")  # fmt: skip
    if refitted(workdir):
        print(f"note: the head was chosen on {CHOSEN_ON!r} and then trained on it too: what is"
              " chosen or scored there now flatters it")  # fmt: skip
    scored = _splits(config, split)
    names = dict.fromkeys((CHOSEN_ON, *scored))
    held = {name: one for name in names if (one := _open(config, loaded.objective, name))}
    leaks, train_positive = _training(loaded, config, [*held])
    evaluator = Classification(
        loaded.objective.findings,
        {name: one.entries for name, one in held.items()},
        train_positive=train_positive,
    )
    model = Model(loaded, config)
    rows = {name: list(model.rows(one)) for name, one in held.items()}
    for name in scored:
        splits = {
            one: rows[one].__iter__ for one in dict.fromkeys((CHOSEN_ON, name)) if one in rows
        }
        metrics, text = evaluator.evaluate(splits)
        metrics["about"] = {
            "data": list(config.data.paths),
            "run": str(workdir),
            "step": loaded.step,
            "leaks": leaks,
            "unreadable_films": len(held[name].films) - len(rows[name]),
        }
        folder = workdir / "eval" / f"{NAME}_{name}" / f"step_{loaded.step}"
        writers.write_atomic(folder / "predictions.csv", text)
        _tell(from_csv(text, name="predictions.csv"), metrics, against=against, folder=folder)


def run_file(file: Path, *, split: str | None, against: Path | None, folder: Path | None) -> None:
    """Score a file of predictions, and write what comes of it if there is a folder for it."""
    predictions = _read(file)
    there = list(dict.fromkeys(film.split for film in predictions.films))
    if split is not None and split not in there:
        raise ConfigError(f"--split={split}: {file} has {', '.join(there) or 'no film'}")
    for name in there if split is None else [split]:
        metrics = summarise(predictions, name)
        metrics["about"] = {"predictions": str(file)}
        place = folder and folder / f"{NAME}_{name}"
        _tell(predictions, metrics, against=against, folder=place)


def _tell(
    predictions: Predictions, metrics: dict[str, Any], *, against: Path | None, folder: Path | None
) -> None:
    """Compare, print and write one split's scores."""
    print(table(metrics))
    if against is not None:
        file = _other(against, metrics["split"])
        other = compare(predictions, _read(file), metrics["split"])
        metrics["against"] = {"file": str(file), **other}
        print(comparison_table(metrics["against"]))
    if folder is not None:
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        writers.write_atomic(folder / "report.html", results_page(predictions, metrics))
        print(f"report: {folder / 'report.html'}")


def _read(file: Path) -> Predictions:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        return from_csv(file.read_text(encoding="utf-8"), name=str(file))
    except UnicodeDecodeError:
        raise PredictionsError(f"{file}: no text in UTF-8") from None


def _other(place: Path, split: str) -> Path:
    """Find the newest predictions of a run for a split, if it is no file."""
    if not place.is_dir():
        return place
    found = place.glob(f"eval/{NAME}_{split}/step_*/predictions.csv")
    newest = max(found, key=lambda p: int(p.parent.name.removeprefix("step_")), default=None)
    if newest is None:
        raise ConfigError(f"--against={place}: it has no predictions for split {split!r};"
                          f" first --task=evaluate --workdir={place}")  # fmt: skip
    return newest


def _splits(config: Config, wanted: str | None) -> list[str]:
    """Name the splits to score."""
    there = {entry["split"] for path in config.data.paths for entry in load_manifest(path)["files"]}
    if wanted is not None and wanted not in there:
        raise ConfigError(f"--split={wanted}: the data have {', '.join(sorted(there))}")
    found = [name for name in SPLITS if name in there - {config.data.split}]
    if wanted is None and not found:
        raise ConfigError("the data have no split but that of training; name it by --split")
    return found if wanted is None else [wanted]


def _open(config: Config, objective: Any, name: str) -> Split | None:
    """Open a split of each source that has it; None where none has."""
    paths = tuple(
        path
        for path in config.data.paths
        if any(entry["split"] == name for entry in load_manifest(path)["files"])
    )
    if not paths:
        return None
    data = dataclasses.replace(config.data, path=paths, mixture=None)
    config = dataclasses.replace(config, data=data)
    return open_split(config, name, findings=objective.findings)


def _training(
    loaded: LoadedRun, config: Config, splits: Sequence[str]
) -> tuple[dict[str, int] | None, np.ndarray | None]:
    """Return (leaks allowed, positives of each finding), None where training data are gone."""
    saved = loaded.config
    try:
        seen = [read_index(path)[saved.data.split] for path in saved.data.paths]
        training = open_split(saved, saved.data.split, findings=loaded.objective.findings)
        positive = class_stats(training)[0]
    except DataError as error:
        print(f"note: the run's training data cannot be read, so leaks are not looked for: {error}")
        return None, None
    wanted = [name for name in splits if name != saved.data.split]
    held = [read_index(path) for path in config.data.paths]
    held_out = [index[name] for index in held for name in wanted if name in index]
    found = refuse_leaks(seen, held_out, allow=config.data.leaks == "allow")
    return found, np.array(positive)


class Model:
    """A loaded run on its devices."""

    def __init__(self, loaded: LoadedRun, config: Config):
        self._config, self._objective, self._mesh = config, loaded.objective, mesh_of(config)
        self._state = placed(loaded, config, self._mesh)
        classify = loaded.objective.predict_fns()["classify"]
        self._predict = infer.compile_predict(classify, self._mesh, rng.key(config.seed, "eval"))

    def rows(self, split: Split) -> Iterator[infer.Row]:
        """Yield logits, labels and id of every film, once."""
        # Batches as in training's evaluations, so that the last bits agree too.
        limit = max(len(split.films), self._config.eval_rows)
        load = every_row(self._config, self._objective, split=split, mesh=self._mesh, limit=limit)
        assert isinstance(load.ids, EveryRow)
        own = sharding.host_rows(self._mesh, load.ids.batch_size)
        with jax.set_mesh(self._mesh):
            for row in infer.rows(
                self._predict,
                self._state,
                dataclasses.replace(load, rows=own),
                steps=load.ids.steps,
                mesh=self._mesh,
                threads=self._config.data.threads,
            ):
                yield {name: row[name] for name in ("logits", "labels", "id")}
