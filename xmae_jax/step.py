"""The pure training step; it knows no objective by name."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from xmae_jax import optim, rng
from xmae_jax.metrics import add
from xmae_jax.typing import Batch, LossOut, Objective, Params, TrainState

WINDOW = 128
"""Steps that a spike is measured against, as in OLMo-core and MaxText (both with 6 deviations)."""


def init_state(objective: Objective, optimizer: optim.Optimizer, key: Key[Array, ""]) -> TrainState:
    """Make the state before the first step."""
    params, frozen = optim.split(objective.init(key), optimizer.config.freeze)
    grid = optimizer.config.grid
    members = {} if grid is None else {"alive": jnp.ones(len(grid.members), bool)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        extra=objective.start(params),
        guard={
            "skipped": jnp.zeros((), jnp.int32),
            "in_a_row": jnp.zeros((), jnp.int32),
            "bad_rows": jnp.zeros((), jnp.int32),
            "taken": jnp.zeros((), jnp.int32),
            "losses": jnp.zeros((WINDOW,)),
            "l2_grads": jnp.zeros((WINDOW,)),
            **members,
        },
    )


def _limit(window: Float[Array, " w"], taken: Int[Array, ""], sigma: float) -> Float[Array, ""]:
    """Return mean + sigma deviations of a window; infinity until it is full."""
    if sigma == math.inf:
        return jnp.full((), jnp.inf)
    mean = jnp.mean(window)
    # A loss that stands still must not fail by the rounding of its mean.
    limit = mean + sigma * jnp.std(window) + 1e-5 * jnp.abs(mean)
    return jnp.where(taken >= WINDOW, limit, jnp.inf)


def _judge(
    guard: dict[str, Array], loss: Float[Array, ""], l2_grads: Float[Array, ""], sigma: float
) -> tuple[dict[str, Array], dict[str, Array], Bool[Array, ""]]:
    """Return (new guard, limits, whether to take the step); windows hold steps taken only.

    A plateau that a run will not come back from is thus refused until too many in a row end it.
    """
    values = {"losses": loss, "l2_grads": l2_grads}
    limits = {name: _limit(guard[name], guard["taken"], sigma) for name in values}
    take = jnp.stack([jnp.isfinite(x) & (x <= limits[name]) for name, x in values.items()]).all()
    place = guard["taken"] % WINDOW
    windows = {
        name: jnp.where(take, guard[name].at[place].set(x), guard[name])
        for name, x in values.items()
    }
    left = 1 - take.astype(jnp.int32)
    counts = {
        "skipped": guard["skipped"] + left,
        "in_a_row": (guard["in_a_row"] + left) * left,
        "taken": guard["taken"] + 1 - left,
    }
    return {**guard, **windows, **counts}, limits, take


def gradient(
    objective: Objective, state: TrainState, batch: Batch, key: Key[Array, ""], micro_batches: int
) -> tuple[Params, LossOut, Float[Array, "*m"]]:
    """Return (gradient, summed LossOut, loss) of the global batch, in `micro_batches` parts.

    Where the loss is one for each member of a grid, the gradient is that of their sum: no member's
    gradient knows of another.
    """
    prepare_key, loss_key = jax.random.split(key)
    batch, weights = objective.prepare(batch, prepare_key, state.step)
    safe = {name: jnp.where(w > 0, w, 1.0) for name, w in weights.items()}

    def loss_fn(params: Params, extra: Params, rows: Batch) -> tuple[Array, tuple[Array, LossOut]]:
        out = objective.loss(params, state.frozen, extra, rows, loss_key, state.step)
        terms = [out.totals[name] / safe[name] for name in weights]
        loss = jnp.sum(jnp.stack(terms), axis=0)
        return jnp.sum(loss), (loss, out)

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        (_, (loss, out)), grads = value_and_grad(state.params, state.extra, batch)
        return grads, out, loss

    # Row i goes to part i % m: each device keeps its own rows, nothing moves between devices.
    parts = {
        name: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()
    }

    def one_part(carry: Any, rows: Batch) -> tuple[Any, None]:
        grads, totals, metrics, extra, loss = carry
        (_, (part_loss, out)), part_grads = value_and_grad(state.params, extra, rows)
        grads = jax.tree.map(jnp.add, grads, part_grads)
        totals = jax.tree.map(jnp.add, totals, out.totals)
        return (grads, totals, add(metrics, out.metrics), out.extra, loss + part_loss), None

    first = {name: x[0] for name, x in parts.items()}
    loss, out = jax.eval_shape(loss_fn, state.params, state.extra, first)[1]
    zeros = partial(jax.tree.map, lambda s: jnp.zeros(s.shape, s.dtype))
    start = (zeros(state.params), zeros(out.totals), zeros(out.metrics), state.extra, zeros(loss))
    (grads, totals, metrics, extra, loss), _ = jax.lax.scan(one_part, start, parts)
    return grads, LossOut(totals, metrics, extra), loss


def _judge_members(
    alive: Bool[Array, " m"], loss: Float[Array, " m"], grads: Params
) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, " m"]]:
    """Return (mean loss, mean gradient norm, whether sound) of the members that still are.

    Both means are NaN if none is sound at this step: the batch is then more suspect than they.
    """
    norms = jax.vmap(optax.tree.norm)(grads)
    sound = alive & jnp.isfinite(loss) & jnp.isfinite(norms)
    loss, norm = (jnp.where(sound, x, 0.0).sum() / sound.sum() for x in (loss, norms))
    return loss, norm, sound


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optim.Optimizer,
    seed: int,
    micro_batches: int,
    spike_sigma: float,
) -> tuple[TrainState, dict[str, Any]]:
    """Take one step; return the new state and what the log wants of it.

    A step whose loss or gradient is not finite, or lies further than `spike_sigma` deviations above
    the mean of the last 128 steps that were taken, changes no parameter, moment or average; it is
    counted, and step, rate and data go on. A member of a grid that alone is not finite stays as it
    was from then on, and the others do not notice.
    """
    key = rng.key(seed, "train", state.step)
    grads, out, loss = gradient(objective, state, batch, key, micro_batches)
    sound = jnp.array(True)
    if optimizer.config.grid is None:
        l2_grads = optax.tree.norm(grads)
    else:
        loss, l2_grads, sound = _judge_members(state.guard["alive"], loss, grads)
    guard, limits, take = _judge(state.guard, loss, l2_grads, spike_sigma)
    if optimizer.config.grid is not None:
        guard["alive"] = jnp.where(take, sound, guard["alive"])

    params, opt_state = optimizer.update(
        grads, state.opt_state, state.params, state.step, take=take & sound
    )
    extra = objective.after_update(params, out.extra, state.step)
    extra = jax.tree.map(partial(jnp.where, take), extra, state.extra)
    guard["bad_rows"] += jnp.sum(~batch["mask"], dtype=jnp.int32)
    log = {
        "training_loss": loss,
        "means": out.metrics,
        "lr": jnp.max(optimizer.lr(state.step)),
        "l2_grads": l2_grads,
        "l2_params": optax.tree.norm(params),
        "skipped": guard["skipped"],
        "in_a_row": guard["in_a_row"],
        "bad_rows": guard["bad_rows"],
        "limits": limits,
        "totals": jax.tree.map(jnp.sum, out.totals),
        "finite_grads": jax.tree.map(lambda g: jnp.isfinite(jnp.sum(jnp.square(g))), grads),
    }
    if optimizer.config.grid is not None:
        log["alive"] = guard["alive"]
    return TrainState(state.step + 1, params, state.frozen, opt_state, extra, guard), log
