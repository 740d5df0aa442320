"""Which films a run was trained on, its own and those of runs that it was begun from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmae_jax.checkpoint import step_directories
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.index import Index, read_index
from xmae_jax.data.manifest import MANIFEST, DataError, file_digest
from xmae_jax.models.weight_files import PICKLED, SAFE, is_weights
from xmae_jax.rundir import read_run
from xmae_jax.seal import json_digest
from xmae_jax.tasks.model import LoadedRun
from xmae_jax.tasks.probe import refitted
from xmae_jax.tasks.split import open_split
from xmae_jax.tasks.train import class_stats, refuse_leaks

_SUBSET = ("split", "eval_split", "label_fraction", "shots", "balance", "leave_out_source")


class Checked(NamedTuple):
    """What is known of the films of training."""

    leaks: dict[str, int] | None
    """Allowed ones, by kind; None where the run's training data are gone."""
    compared: list[str]
    """Splits in which leaks were looked for."""
    gone: list[str]
    """Runs with training data that are not there any more."""
    positive: np.ndarray | None
    """Films of the run's training split with each finding."""


def learnt_splits(workdir: Path, data: dict[str, Any]) -> tuple[str, ...]:
    """Name the splits that a run's weights were trained on; `data` is that of its config."""
    return (data["split"], *([data["eval_split"]] if refitted(workdir) else []))


def data_digest(config: Config) -> str:
    """Name the data sets that a config reads, wherever they are."""
    return json_digest([[_manifest(p) for p in config.data.paths], config.data.leave_out_source])


def is_own(loaded: LoadedRun, config: Config) -> bool:
    """Tell whether a config has the very data of the run."""
    saved, now = loaded.config.data, config.data
    if any(getattr(saved, name) != getattr(now, name) for name in _SUBSET):
        return False
    there = [_manifest(path) for path in saved.paths]
    if None not in there:
        return there == [_manifest(path) for path in now.paths]
    # They were moved, or are gone; the training split is on record.
    record = read_run(loaded.workdir)
    moved = dataclasses.replace(loaded.config, data=dataclasses.replace(saved, path=now.path))
    try:
        digests = open_split(
            moved, saved.split, findings=getattr(loaded.objective, "findings", ())
        ).digests
    except ConfigError:
        return False
    return record is not None and [s["digest"] for s in record.sources] == [*digests]


def of_training(loaded: LoadedRun, config: Config, split: str) -> list[str]:
    """List the data sets of a config whose `split` is what the run was trained on."""
    saved = loaded.config.data
    own = {_manifest(path) for path in saved.paths} - {None}
    if split != saved.split:
        return []
    if is_own(loaded, config):
        return [*config.data.paths]
    return [path for path in config.data.paths if _manifest(path) in own]


def check(loaded: LoadedRun, config: Config, splits: Sequence[str]) -> Checked:
    """Look for films of `splits` in training; Leaked if there are any, unless that is allowed.

    The films of training themselves are passed over. Runs before this one count as far as they
    were trained on findings or reports and are run directories.
    """
    paths = config.data.paths if is_own(loaded, config) else loaded.config.data.paths
    data = dataclasses.asdict(loaded.config.data) | {"path": paths}
    try:
        seen = _learnt(loaded.workdir, data)
        moved = dataclasses.replace(loaded.config.data, path=paths)
        training = open_split(
            dataclasses.replace(loaded.config, data=moved),
            moved.split,
            findings=getattr(loaded.objective, "findings", ()),
        )
        positive = class_stats(training)[0]
    except DataError as error:
        print(f"note: the run's training data cannot be read, so leaks are not looked for: {error}")
        return Checked(None, [], [str(loaded.workdir)], None)
    gone = []
    for workdir, tree in before(loaded):
        try:
            if tree is None:
                raise DataError(f"there is no run in {workdir} any more")
            seen = _learnt(workdir, tree["data"]) | seen
        except DataError as error:
            print(f"note: leaks are not looked for in what {workdir} was trained on: {error}")
            gone.append(str(workdir))
    passed_over = {name: of_training(loaded, config, name) for name in splits}
    held_out = [
        index[name]
        for path in config.data.paths
        for index in [read_index(path)]
        for name in splits
        if name in index and path not in passed_over[name]
    ]
    found = refuse_leaks([*seen.values()], held_out, allow=config.data.leaks == "allow")
    return Checked(found, [one.name for one in seen.values()], gone, np.array(positive))


def about(loaded: LoadedRun, config: Config, split: str, checked: Checked) -> dict[str, Any]:
    """Tell, beside the scores of a split, of what they are the scores."""
    return {
        "data": list(config.data.paths),
        "own_data": is_own(loaded, config),
        "run": str(loaded.workdir),
        "step": loaded.step,
        "of_training": of_training(loaded, config, split),
        "leaks": checked.leaks,
        "leaks_compared": checked.compared,
        "leaks_not_compared": checked.gone,
    }


def _learnt(workdir: Path, data: dict[str, Any]) -> dict[tuple[str | None, str], Index]:
    """Read what a run was trained on, by manifest and split."""
    paths = (data["path"],) if isinstance(data["path"], str) else data["path"]
    indices = {path: read_index(path) for path in paths}
    return {
        (_manifest(path), name): index[name]
        for path, index in indices.items()
        for name in learnt_splits(workdir, data)
        if name in index
    }


def before(loaded: LoadedRun) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield the runs of findings or reports that a run was begun from, with their configs.

    None stands for that of a run that is gone, or lies elsewhere now. Weights files are no runs.
    """
    passed = {loaded.workdir.absolute()}
    starts = _starts(loaded.config.init_from, loaded.config.objective)
    while starts:
        key, start = starts.pop(0)
        workdir = Path(start).absolute()
        if workdir in passed or workdir.suffix in (*SAFE, *PICKLED):
            continue
        passed.add(workdir)
        if not step_directories(workdir):
            if not is_weights(workdir):
                yield workdir, None
            continue
        try:
            tree = json.loads((workdir / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.{key}: {workdir / 'config.json'}: {error}") from None
        if "findings" in tree["objective"] or tree["data"].get("text") is not None:
            yield workdir, tree
        starts += _starts(tree["init_from"], tree["objective"])


def _starts(init_from: str | None, objective: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a run was begun from, each with the config's key for it."""
    starts = {"init_from": init_from, "objective.decoder_from": objective.get("decoder_from")}
    return [(key, start) for key, start in starts.items() if start is not None]


def _manifest(path: str) -> str | None:
    file = Path(path) / MANIFEST
    return file_digest(file) if file.is_file() else None
