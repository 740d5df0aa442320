"""AdamW with everything by parameter name: decay, freezing, rates by name and by layer.

Blocks are stacked, so a bias is [l, d] and rules cannot go by rank: they are regular expressions
over paths such as `encoder/blocks/mlp/up/bias`. Rate and decay are functions of the step of the
train state, not of a counter inside the optimizer, so that a step that was left out still counts.

With a grid, every array has a leading axis of members: each has a rate, a decay, a clipping and a
count of steps of its own, as if it were trained alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from xmae_jax.typing import Params, leaf_path

EPSILON = 1e-8
NO_DECAY = re.compile(r".*(^|/)(bias|scale|gamma[12]|queries)")
"""Biases, norms and layer scales do not decay; tokens and positions do, as with He et al. (arXiv
2111.06377, appendix A) and Oquab et al. (DINOv2, arXiv 2304.07193). `queries` of a head are fixed,
and have to stay what they are even where no pattern freezes them."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rates and decays trained side by side, each pair with parameters of its own."""

    blr: tuple[float, ...]
    weight_decay: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.blr or min(self.blr) <= 0:
            raise ValueError(f"blr is to be positive rates, got {self.blr}")
        if not self.weight_decay or min(self.weight_decay) < 0:
            raise ValueError(f"weight_decay is to be 0 or more each, got {self.weight_decay}")

    @property
    def members(self) -> tuple[tuple[float, float], ...]:
        """(blr, weight decay) of each member, in the order of the leading axis."""
        return tuple(itertools.product(self.blr, self.weight_decay))


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of AdamW (Loshchilov and Hutter, arXiv 1711.05101) and its schedules."""

    blr: float
    """Base rate: the peak is blr * batch_size / 256."""
    min_lr: float
    schedule: Literal["cosine", "constant"]
    b1: float
    b2: float
    weight_decay: float
    weight_decay_end: float
    """Decay moves from weight_decay to this on half a cosine; equal values keep it constant."""
    clip_norm: float | None
    """Largest global L2 norm of the gradient; None is off."""
    layer_decay: float
    """Rate of block i of l is layer_decay^(l - i), of the embedding layer_decay^(l + 1)."""
    freeze: tuple[str, ...]
    """Regular expressions; a parameter whose whole path matches one is not trained."""
    grid: Grid | None
    """Takes the place of blr, weight_decay and weight_decay_end; None trains one set."""
    rates: tuple[tuple[str, float], ...]
    """(regular expression, factor): multiplies the rate of a parameter whose whole path matches;
    the first that matches counts."""

    def __post_init__(self) -> None:
        for name in ("blr", "clip_norm", "layer_decay"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("min_lr", "weight_decay", "weight_decay_end"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        patterns = [("freeze", one) for one in self.freeze]
        for name, pattern in patterns + [("rates", one) for one, _ in self.rates]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None
        for pattern, factor in self.rates:
            if not factor > 0:
                raise ValueError(f"rates: {pattern!r} has {factor}; freeze keeps parameters still")


def split(params: Params, patterns: tuple[str, ...]) -> tuple[Params, Params]:
    """Split a nested dict into (trained, frozen) by regular expressions over paths."""

    def part(tree: Params, prefix: str, frozen: bool) -> Params:
        out = {}
        for name, value in tree.items():
            if isinstance(value, dict):
                if inner := part(value, f"{prefix}{name}/", frozen):
                    out[name] = inner
            elif any(re.fullmatch(p, prefix + name) for p in patterns) is frozen:
                out[name] = value
        return out

    return part(params, "", False), part(params, "", True)


def merge(params: Params, frozen: Params) -> Params:
    """Join two nested dicts of which no path is in both."""
    joined = dict(params)
    for name, value in frozen.items():
        joined[name] = merge(joined.get(name, {}), value) if isinstance(value, dict) else value
    return joined


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW for one run; `update` is pure."""

    config: OptimConfig
    batch_size: int
    warmup_steps: int
    total_steps: int

    @property
    def peak_lr(self) -> float:
        """The linear scaling rule of Goyal et al. (arXiv 1706.02677)."""
        return self.config.blr * self.batch_size / 256

    def _of_members(self, place: int, alone: float) -> Any:
        """Return a setting of each member, or of the run that has none."""
        grid = self.config.grid
        return alone if grid is None else np.array([member[place] for member in grid.members])

    @property
    def _adam(self) -> optax.GradientTransformation:
        c = self.config
        clip = optax.identity() if c.clip_norm is None else optax.clip_by_global_norm(c.clip_norm)
        return optax.chain(clip, optax.scale_by_adam(c.b1, c.b2, EPSILON))

    def init(self, params: Params) -> Any:
        """Make the moments, float32, for trained parameters only."""
        init = self._adam.init
        return init(params) if self.config.grid is None else jax.vmap(init)(params)

    def lr(self, step: Int[Array, ""]) -> Float[Array, "*m"]:
        """Return the rate of step `step`, counted from 0: linear warm-up, then the schedule.

        The first step moves by a share of the peak too: a rate of 0 would waste it.
        """
        t = step.astype(jnp.float32)
        peak = self._of_members(0, self.config.blr) * self.batch_size / 256
        warm = jnp.minimum((t + 1.0) / max(self.warmup_steps, 1), 1.0)
        if self.config.schedule == "constant":
            return warm * peak
        low = self.config.min_lr
        falling = low + (peak - low) * self._half_cosine(step, self.warmup_steps)
        return jnp.where(t < self.warmup_steps, warm * peak, falling)

    def weight_decay(self, step: Int[Array, ""]) -> Float[Array, "*m"]:
        """Return the decay of step `step`; members keep theirs."""
        start = self._of_members(1, self.config.weight_decay)
        end = self._of_members(1, self.config.weight_decay_end)
        return end + (start - end) * self._half_cosine(step, 0)

    def _half_cosine(self, step: Int[Array, ""], first: int) -> Float[Array, ""]:
        length = max(self.total_steps - first, 1)
        share = jnp.clip((step.astype(jnp.float32) - first) / length, 0.0, 1.0)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * share))

    def update(
        self,
        grads: Params,
        opt_state: Any,
        params: Params,
        step: Int[Array, ""],
        *,
        take: Bool[Array, "*m"],
    ) -> tuple[Params, Any]:
        """Return (new params, new opt_state), or the old ones where `take` is false.

        `take` is one for all, or with a grid one for each member.
        """
        args = grads, opt_state, params, self.lr(step), self.weight_decay(step), take
        return self._move(*args) if self.config.grid is None else jax.vmap(self._move)(*args)

    def _move(
        self, grads: Params, opt_state: Any, params: Params, lr: Array, decay: Array, take: Array
    ) -> tuple[Params, Any]:
        """Move one set of parameters."""
        _, moved = self._adam.update(grads, opt_state, params)
        opt_state = jax.tree.map(partial(jnp.where, take), moved, opt_state)
        # Moments are written before parameters are: the compiler then updates all of them in place,
        # where it would otherwise read old moments again and so copy them.
        opt_state = jax.lax.optimization_barrier(opt_state)
        adam = opt_state[-1]
        c = self.config
        # What optax returns as the direction, from the moments as they stand now.
        first, second = (1 - b ** adam.count.astype(jnp.float32) for b in (c.b1, c.b2))

        def move(path: tuple, p: Array, m: Array, v: Array) -> Array:
            name = leaf_path(path)
            u = (m / first) / (jnp.sqrt(v / second) + EPSILON)
            if not NO_DECAY.fullmatch(name):
                u = u + decay * p
            rate = lr * layer_rate(name, p.shape, params, c.layer_decay) * _factor(name, c.rates)
            return jnp.where(take, p - rate * u, p)

        return jax.tree_util.tree_map_with_path(move, params, adam.mu, adam.nu), opt_state


def _factor(name: str, rates: tuple[tuple[str, float], ...]) -> float:
    """Return what the first pattern that a path matches gives, or 1."""
    return next((factor for pattern, factor in rates if re.fullmatch(pattern, name)), 1.0)


def layer_rate(name: str, shape: tuple[int, ...], params: Params, decay: float) -> Any:
    """Return what multiplies the rate of one parameter: a number, or a vector over its layers.

    The layer-wise rates of Bao et al., BEiT (arXiv 2106.08254, appendix): the encoder's embedding
    moves slowest, its last block and everything after it at the full rate.
    """
    if decay == 1.0 or not name.startswith("encoder/") or name.startswith("encoder/norm/"):
        return 1.0
    if name.startswith("encoder/blocks/"):
        layers = shape[0]
        return (decay ** (layers - jnp.arange(layers))).reshape(-1, *[1] * (len(shape) - 1))
    if "blocks" not in params["encoder"]:
        raise ValueError("layer_decay counts layers of the encoder's blocks, and freeze takes all")
    depth = jax.tree.leaves(params["encoder"]["blocks"])[0].shape[0]
    return decay ** (depth + 1)
