"""Score the findings of a finished run, or of a file of predictions without any model.

Each split's scores, predictions and page go to `eval/classification_<split>/step_<n>/` of the run,
those of other data than its own to `eval/classification_<split>_<digest of the data>/`.
Those of "test" hold the films of "val" too, on which thresholds and temperatures are chosen, so
that the file alone gives all the numbers again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import infer, rng, sharding, writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow
from xmae_jax.data.manifest import load_manifest
from xmae_jax.data.records import SPLITS
from xmae_jax.evaluators.classification import Classification, comparison_table, table
from xmae_jax.evaluators.page import results_page
from xmae_jax.scores.compare import compare
from xmae_jax.scores.predictions import Predictions, PredictionsError, from_csv
from xmae_jax.scores.summary import CHOSEN_ON, summarise
from xmae_jax.tasks import trained_on
from xmae_jax.tasks.model import LoadedRun, load_run, placed, refuse_other_changes
from xmae_jax.tasks.split import Split, open_split
from xmae_jax.tasks.train import every_row, mesh_of

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
    own = trained_on.is_own(loaded, config)
    learnt = trained_on.learnt_splits(workdir, dataclasses.asdict(loaded.config.data))
    scored = _splits(config, split, learnt=learnt if own else ())
    names = dict.fromkeys((CHOSEN_ON, *scored))
    held = {name: one for name in names if (one := _open(config, loaded.objective, name))}
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
    rows |= {name: list(model.rows(one)) for name, one in held.items() if name not in rows}
    for name in scored:
        splits = {
            one: rows[one].__iter__ for one in dict.fromkeys((CHOSEN_ON, name)) if one in rows
        }
        metrics, text = evaluator.evaluate(splits)
        metrics["about"] = {
            "data": list(config.data.paths),
            "own_data": own,
            "run": str(workdir),
            "step": loaded.step,
            "refitted_on": CHOSEN_ON if before is not None else None,
            "of_training": trained_on.of_training(loaded, config, name),
            "leaks": checked.leaks,
            "leaks_compared": checked.compared,
            "leaks_not_compared": checked.gone,
            "unreadable_films": len(held[name].films) - len(rows[name]),
        }
        digest = trained_on.data_digest(config)
        folder = workdir / "eval" / _place(name, None if own else digest) / f"step_{loaded.step}"
        writers.write_atomic(folder / "predictions.csv", text)
        predictions = from_csv(text, name="predictions.csv")
        _tell(predictions, metrics, against=against, folder=folder, digest=digest)


def _place(split: str, digest: str | None) -> str:
    """Name the folder of a split's scores; those of other data than the run's have their digest."""
    return f"{NAME}_{split}" + (f"_{digest[:8]}" if digest else "")


def _before_refit(workdir: Path, step: int) -> list[infer.Row]:
    """Read what a probe's head said of validation before it was trained on it; else nothing."""
    file = workdir / "eval" / _place("test", None) / f"step_{step}" / "predictions.csv"
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
    """Score a file of predictions, and write what comes of it if there is a folder for it."""
    predictions = _read(file)
    there = list(dict.fromkeys(film.split for film in predictions.films))
    if split is not None and split not in there:
        raise ConfigError(f"--split={split}: {file} has {', '.join(there) or 'no film'}")
    for name in there if split is None else [split]:
        metrics = summarise(predictions, name)
        metrics["about"] = {"predictions": str(file)}
        place = folder and folder / _place(name, None)
        _tell(predictions, metrics, against=against, folder=place, digest=None)


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
        file = _other(against, metrics["split"], digest=digest)
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


def _other(place: Path, split: str, *, digest: str | None) -> Path:
    """Find the newest predictions of a run for a split of some data, if it is no file."""
    if not place.is_dir():
        return place
    name = _place(split, digest)  # else they are its own data
    name = name if (place / "eval" / name).is_dir() else _place(split, None)
    found = place.glob(f"eval/{name}/step_*/predictions.csv")
    newest = max(found, key=lambda p: int(p.parent.name.removeprefix("step_")), default=None)
    if newest is None:
        raise ConfigError(f"--against={place}: it has no predictions for split {split!r};"
                          f" first --task=evaluate --workdir={place}")  # fmt: skip
    return newest


def _splits(config: Config, wanted: str | None, *, learnt: tuple[str, ...]) -> list[str]:
    """Name the splits to score; learnt: those of these data that the run was trained on."""
    there = {entry["split"] for path in config.data.paths for entry in load_manifest(path)["files"]}
    if wanted is not None and wanted not in there:
        raise ConfigError(f"--split={wanted}: the data have {', '.join(sorted(there))}")
    if wanted in learnt[1:]:
        raise ConfigError(f"--split={wanted}: the head was chosen on it and then trained on it too,"
                          " so what it scores there says nothing of other films")  # fmt: skip
    found = [name for name in SPLITS if name in there - {config.data.split, *learnt}]
    if wanted is None and not found:
        raise ConfigError("the data have no split but those of training; name it by --split")
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
