"""An objective that fails on demand: how tests, and a cautious user, see the guards at work."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, cast

import jax
import jax.numpy as jnp

from xmae_jax.typing import Batch, LossOut, Objective, Params

KINDS = {"nan": jnp.nan, "inf": jnp.inf, "spike": 100.0}


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """Another objective, the first loss term of which is multiplied at some steps."""

    objective: Objective
    first: int
    last: int
    factor: float

    def __post_init__(self) -> None:
        # Copied, not looked up by __getattr__: an isinstance check of a protocol does not see that.
        for name in ("view", "grid", "init", "start", "prepare", "after_update", "predict_fns"):
            object.__setattr__(self, name, getattr(self.objective, name))

    def __getattr__(self, name: str) -> Any:
        """Find what only some objectives have, such as findings."""
        if name.startswith("__") or name == "objective":  # asked for while a copy is made
            raise AttributeError(name)
        return getattr(self.objective, name)

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: jax.Array,
        step: jax.Array,
    ) -> LossOut:
        """Sum the terms; `step` counts the steps before this one."""
        out = self.objective.loss(params, frozen, extra, batch, rng_key, step)
        name, *_ = out.totals
        now = (step + 1 >= self.first) & (step + 1 <= self.last)
        factor = jnp.where(now, self.factor, 1.0)
        return out._replace(totals={**out.totals, name: out.totals[name] * factor})


def poisoned(objective: Objective, spec: str) -> Objective:
    """Read `N:kind` or `N-M:kind`, steps as the log counts them; ValueError if it is neither."""
    match = re.fullmatch(rf"(\d+)(?:-(\d+))?:({'|'.join(KINDS)})", spec)
    if match is None:
        raise ValueError(f"{spec!r} is not N:kind or N-M:kind with a kind of {', '.join(KINDS)}")
    kind = match[3]
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise ValueError(f"{spec!r}: the first step is 1, and M is not before N")
    return cast(Objective, Poisoned(objective, first, last, KINDS[kind]))
