"""A trained model as a run directory holds it: what evaluate, predict and export share."""

from __future__ import annotations

import dataclasses
import re
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
from xmae_jax.program import lay_out
from xmae_jax.rundir import read_run
from xmae_jax.typing import TrainState


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


def placed(loaded: LoadedRun, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Lay a run's parameters out on a mesh; there is no optimizer."""
    with jax.set_mesh(mesh):
        where = lay_out(config, loaded.objective, mesh).shardings
        return TrainState(
            step=loaded.step,
            params=jax.device_put(loaded.params, where.params),
            frozen=jax.device_put(loaded.frozen, where.frozen),
            opt_state={},
            extra=jax.device_put(loaded.extra, where.extra),
            guard={},
        )


_FREE = {
    "evaluate": ("data", "mesh", "batch_size", "micro_batch_size"),
    "export": ("export",),
    "predict": ("predict", "mesh", "batch_size", "micro_batch_size"),
}
"""Parts of a run's config that a task may be given another of."""
_READ = "config.data.text."
"""What of `data` is as it was in training all the same: how reports are read."""


def refuse_other_changes(config: Config, loaded: LoadedRun, *, task: str) -> None:
    """Raise ConfigError where more of a run's config is changed than a task may."""
    texts = [config_lib.to_json(c) for c in (loaded.config, config)]
    free = re.compile(rf"config\.({'|'.join(_FREE[task])})[.:]")
    changes = [
        c for c in config_lib.differences(*texts) if not free.match(c) or c.startswith(_READ)
    ]
    if changes:
        raise ConfigError(f"--task={task} takes a run as it was trained; only config."
                          + ", config.".join(_FREE[task]) + " may change"
                          + f", but not {_READ}*" * ("data" in _FREE[task]) + ":\n  "
                          + "\n  ".join(changes))  # fmt: skip


def named(objective: Any) -> Any:
    """Give the findings of an objective, if it has any, their canonical names."""
    if not hasattr(objective, "findings"):
        return objective
    try:
        names = tuple(FINDINGS[place_of(name)] for name in objective.findings)
        return dataclasses.replace(objective, findings=names)
    except ValueError as error:
        raise ConfigError(f"config.objective.findings: {error}") from None
