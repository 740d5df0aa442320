"""Train, or resume: config to objective, data and evaluators, then the loop.

Everything that can be wrong with a config is found here, before the run directory is touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax

from xmae_jax import config as config_lib
from xmae_jax import sharding, train
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow, LoadStep
from xmae_jax.data.plan import Plan, mixture_counts
from xmae_jax.data.records import Records
from xmae_jax.data.views import VIEWS
from xmae_jax.evaluators.reconstruction import Reconstruction
from xmae_jax.objectives import OBJECTIVES

EVALUATORS = {"reconstruct": ("reconstruction", Reconstruction)}
"""Which evaluator reads which prediction."""

NO_DATA = """config.data.path is not set. These two commands make films to try it on:
  python -m data_prep.phantoms --output runs/phantoms/films --count 1000 --seed 0
  python -m data_prep.build --input runs/phantoms/films --output runs/phantoms/shards
then add --config.data.path=runs/phantoms/shards"""


def run(config: Config, workdir: Path, *, allow_config_change: bool) -> None:
    """Train to the end, or raise what stopped it."""
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    if jax.process_count() > 1:
        raise ConfigError("one process for now: evaluation and stopping know no other hosts")
    objective = config_lib.objective_of(config, OBJECTIVES)
    if config.init_from is not None and not (Path(config.init_from) / "checkpoints").is_dir():
        raise ConfigError(f"config.init_from: {config.init_from} has no checkpoints")
    mesh = _mesh(config)
    sources = _open(config, "split")
    held_out = _open(config, "eval_split") if config.data.eval_split else []
    plan = _plan(config, sources)

    def view(crop_scale: tuple[float, float] | None) -> Any:
        return VIEWS[objective.view](
            image_size=config.image_size,
            grid=objective.grid,
            contour_region=config.data.contour_region,
            crop_scale=crop_scale,
        )

    def every(records: list[Records]) -> LoadStep:
        rows = min(config.rows_at_once, config.eval_rows)
        rows += -rows % mesh.size
        ids = EveryRow(tuple(len(r) for r in records), rows, config.eval_rows)
        return LoadStep(ids, records, view(None), config.seed, slice(None))

    feed = train.Feed(
        plan=plan,
        train=LoadStep(plan.ids, sources, view(config.data.crop_scale), config.seed, slice(None)),
        evaluation={"train": every(sources), "val": every(held_out)} if held_out else {},
    )
    evaluators = {
        name: evaluator()
        for fn, (name, evaluator) in EVALUATORS.items()
        if fn in objective.predict_fns() and held_out
    }
    for path, source in zip(config.data.paths, sources, strict=True):
        if source.size < config.image_size:
            print(f"note: {path} holds films of {source.size} px; they are enlarged to"
                  f" {config.image_size}")  # fmt: skip
    records = {"sources": [{"records": len(s), "digest": s.digest} for s in sources]}
    files = {"config": config_lib.to_json(config), "data": json.dumps(records, indent=1) + "\n"}
    _compare(files, workdir, allow_change=allow_config_change)
    train.train(config, objective, feed, evaluators, mesh, workdir, files)


def _mesh(config: Config) -> jax.sharding.Mesh:
    """Lay out the mesh, and see that rows split over it."""
    try:
        mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
        sharding.host_rows(mesh, config.rows_at_once)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from None
    return mesh


def _open(config: Config, key: str) -> list[Records]:
    """Open one split of every source."""
    try:
        return [Records(path, getattr(config.data, key)) for path in config.data.paths]
    except ValueError as error:
        hint = "; None trains without evaluation" if key == "eval_split" else ""
        raise ConfigError(f"config.data.{key}: {error}{hint}") from None


def _plan(config: Config, sources: list[Records]) -> Plan:
    """Set the order of data."""
    sizes = tuple(len(source) for source in sources)
    counts = config.data.mixture or mixture_counts(sizes, config.batch_size)
    if len(counts) != len(sizes) or sum(counts) != config.batch_size or min(counts) < 1:
        raise ConfigError(
            f"config.data.mixture {counts} is to have a positive number of rows for each of"
            f" {len(sizes)} sources, {config.batch_size} in all"
        )
    return Plan(config.seed, sizes, counts, tuple(source.digest for source in sources))


def _compare(files: dict[str, str], workdir: Path, *, allow_change: bool) -> None:
    """Compare config and data with what the run began with."""
    changes = []
    for name, text in files.items():
        path = workdir / f"{name}.json"
        if path.is_file():
            try:
                changes += config_lib.differences(path.read_text(), text, where=name)
            except ValueError as error:
                raise ConfigError(f"{path} is not JSON: {error}") from None
    listed = "\n  ".join(changes)
    if changes and not allow_change:
        raise ConfigError(
            f"{workdir} was begun with another config or other data:\n  {listed}\n"
            "Go on with --allow_config_change, or choose another --workdir."
        )
    if changes:
        print(f"changed since the run began:\n  {listed}")
