"""A trained model as a run directory holds it: what evaluate, predict and export share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from xmae_jax import checkpoint, rng
from xmae_jax import config as config_lib
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.findings import FINDINGS, place_of
from xmae_jax.digest import flatten, nested
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.optim import merge, split
from xmae_jax.rundir import read_run


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """The newest checkpoint of a run, as far as predictions need it."""

    workdir: Path
    config: Config
    objective: Any
    params: Any
    frozen: Any
    extra: Any
    step: int


def load_run(workdir: Path) -> LoadedRun:
    """Read a run's saved config and its newest checkpoint, into host memory.

    Raises ConfigError where the directory holds no run, and CheckpointError where its newest
    checkpoint is not what was saved.
    """
    saved = workdir / "config.json"
    if not saved.is_file():
        raise ConfigError(f"--workdir={workdir}: no run directory ({saved} is not there)")
    config = config_lib.resolve(config_lib.from_json(saved))
    objective = named(config_lib.objective_of(config, OBJECTIVES))
    steps, record = checkpoint.step_directories(workdir), read_run(workdir)
    if not steps:
        raise ConfigError(f"--workdir={workdir}: has no checkpoint")
    wanted = {"params": jax.eval_shape(objective.init, rng.key(0, "init"))}
    wanted["extra"] = jax.eval_shape(
        objective.start, split(wanted["params"], config.optim.freeze)[0]
    )
    try:
        leaves = checkpoint.read_digest(steps[0], record.id if record else None)["leaves"]
        leaves = {
            n: leaf for n, leaf in leaves.items() if n.startswith(("params/", "frozen/", "extra/"))
        }
        read = nested(checkpoint.read_back(steps[0], leaves))
    except checkpoint.Unusable as error:
        raise checkpoint.CheckpointError(f"{steps[0]}: {error}") from None
    params, frozen, extra = (read.get(name, {}) for name in ("params", "frozen", "extra"))
    found = {"params": merge(params, frozen), "extra": extra}
    shapes = [{n: x.shape for n, x in flatten(tree).items()} for tree in (found, wanted)]
    if shapes[0] != shapes[1]:
        wrong = sorted(
            n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n)
        )
        raise ConfigError(f"{steps[0]} does not fit {saved}: {', '.join(wrong[:5])}")
    return LoadedRun(workdir, config, objective, params, frozen, extra, int(steps[0].name))


def named(objective: Any) -> Any:
    """Give the findings of an objective, if it has any, their canonical names."""
    if not hasattr(objective, "findings"):
        return objective
    try:
        names = tuple(FINDINGS[place_of(name)] for name in objective.findings)
        return dataclasses.replace(objective, findings=names)
    except ValueError as error:
        raise ConfigError(f"config.objective.findings: {error}") from None
