"""The program of a run on a mesh: its state's shapes, where they lie, and the compiled step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from xmae_jax import attention, rng, sharding, step
from xmae_jax.config import Config, ConfigError
from xmae_jax.optim import Optimizer
from xmae_jax.typing import Objective, TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a run before any array is made."""

    optimizer: Optimizer
    init: Callable[[jax.Array], TrainState]
    shapes: TrainState
    shardings: TrainState
    step: Any
    """The jitted step: (state, batch) -> (state, log); the state is given away."""

    @property
    def parameters(self) -> int:
        """Number of parameters, trained or frozen."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(
            (self.shapes.params, self.shapes.frozen)
        ))  # fmt: skip


def lay_out(config: Config, objective: Objective, mesh: Mesh) -> Program:
    """Lay a run out on a mesh; ConfigError names a parameter that cannot be split."""
    try:
        dtype = jax.numpy.dtype(config.compute_dtype)
        attention.check(config.attention, mesh.devices.flat[0].platform, dtype)
    except ValueError as error:
        raise ConfigError(f"config.attention: {error}") from None
    warmup_steps = min(config.warmup_steps, config.total_steps)
    optimizer = Optimizer(config.optim, config.batch_size, warmup_steps, config.total_steps)
    init = partial(step.init_state, objective, optimizer)
    shapes = jax.eval_shape(init, rng.key(config.seed, "init"))
    try:
        shardings = sharding.state_shardings(shapes, mesh)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from None
    compiled = jax.jit(
        partial(
            step.train_step,
            objective=objective,
            optimizer=optimizer,
            seed=config.seed,
            micro_batches=config.batch_size // config.rows_at_once,
            spike_sigma=config.guard.spike_sigma or math.inf,
        ),
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    return Program(optimizer, init, shapes, shardings, compiled)
