"""What is held out of a run's training: its splits, the rows that a model predicts, the place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from xmae_jax import infer, rng, sharding
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow
from xmae_jax.data.manifest import load_manifest
from xmae_jax.data.records import SPLITS
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.tasks.model import LoadedRun, placed
from xmae_jax.tasks.split import Split, open_split
from xmae_jax.tasks.train import every_row, mesh_of


def place(evaluator: str, split: str, digest: str | None) -> str:
    """Name the folder of a split's scores; those of other data than the run's have their digest."""
    return f"{evaluator}_{split}" + (f"_{digest[:8]}" if digest else "")


def read_text(file: Path) -> str:
    """Read a file of predictions, line ends as they are; ConfigError if it is not there."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PredictionsError(f"{file}: no text in UTF-8") from None


def newest(evaluator: str, where: Path, split: str, *, digest: str | None) -> Path:
    """Find the newest predictions of a run for a split of some data, if it is no file."""
    if not where.is_dir():
        return where
    name = place(evaluator, split, digest)  # else they are its own data
    name = name if (where / "eval" / name).is_dir() else place(evaluator, split, None)
    found = where.glob(f"eval/{name}/step_*/predictions.csv")
    last = max(found, key=lambda p: int(p.parent.name.removeprefix("step_")), default=None)
    if last is None:
        raise ConfigError(f"--against={where}: it has no predictions for split {split!r};"
                          f" first --task=evaluate --workdir={where}")  # fmt: skip
    return last


def splits_of(config: Config, wanted: str | None, *, learnt: tuple[str, ...]) -> list[str]:
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


def open_held_out(config: Config, objective: Any, name: str) -> Split | None:
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
    return open_split(config, name, findings=getattr(objective, "findings", ()))


class Model:
    """A loaded run on its devices."""

    def __init__(
        self,
        loaded: LoadedRun,
        config: Config,
        *,
        predict: str = "classify",
        tokenizer: Path | None = None,
    ):
        """predict: which of the objective's predictions; tokenizer: its copy, if it reads text."""
        self._config, self._objective, self._mesh = config, loaded.objective, mesh_of(config)
        self._state = placed(loaded, config, self._mesh)
        self._tokenizer = tokenizer
        function = loaded.objective.predict_fns()[predict]
        self._predict = infer.compile_predict(function, self._mesh, rng.key(config.seed, "eval"))

    def rows(self, split: Split, *names: str) -> Iterator[infer.Row]:
        """Yield some arrays of every film or study, once, and its id."""
        # Batches as in training's evaluations, so that the last bits agree too.
        limit = max(len(split.films), self._config.eval_rows)
        load = every_row(
            self._config,
            self._objective,
            split=split,
            mesh=self._mesh,
            limit=limit,
            tokenizer=self._tokenizer,
        )
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
                yield {name: row[name] for name in (*names, "id")}
