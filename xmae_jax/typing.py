"""Types that every module shares, and the glossary of shape letters.

Shape letters in signatures: b rows of a batch, h w pixels, gh gw patch grid, n patches, k kept
(visible) patches, d width, p patch side, l layers, c findings. A film has one channel, written 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

Batch = Mapping[str, jax.Array]
"""Name -> array, first axis b; always `mask` [b] (1 real row, 0 padding) and `id` int32 [b 2]."""

Params = dict[str, Any]
"""A nested dict of arrays."""


def leaf_path(path: tuple) -> str:
    """Write a key path of a tree as `a/b/c`, the form that rules and checkpoints use."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Mean(NamedTuple):
    """A mean in two parts: added over micro-batches, steps and hosts, divided once at the end."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


class Features(NamedTuple):
    """What every encoder returns, after its final norm."""

    cls: Float[Array, "b d"]
    patches: Float[Array, "b k d"]
    ids: Int[Array, "b k"]
    """Which patches of the grid (row-major) they are."""
    grid: tuple[int, int]
    layers: tuple[tuple[Float[Array, "b d"], Float[Array, "b k d"]], ...] = ()
    """(cls, patches) of the last blocks that were asked for, each after the final norm."""
    valid: Bool[Array, "b k"] | None = None
    """Which patches are film and not padding; None is all of them."""


class Prepared(NamedTuple):
    """A batch with every draw made, and the weight of each loss term over the global batch."""

    batch: Batch
    weights: dict[str, Float[Array, ""]]


class LossOut(NamedTuple):
    """What an objective's loss returns for some rows: sums, never means."""

    totals: dict[str, Float[Array, "*m"]]
    """Of each term; with `optim.grid` of each member, on its leading axis."""
    metrics: dict[str, Mean]
    extra: Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; all of it is saved and restored.

    Its leaves are arrays, or in the same structure their shapes or shardings.
    """

    step: Any
    params: Params
    frozen: Params
    """Parameters excluded by pattern: no gradient, no optimizer leaf."""
    opt_state: Any
    extra: Params
    """The objective's own state without gradient, such as an average of the parameters."""
    guard: dict[str, Any]
    """`skipped`: steps left out because loss or gradient was not finite or spiked, `in_a_row` of
    them just now; `taken`: the others, with `losses` and `l2_grads` of the last of them;
    `bad_rows`: rows left out because their record is damaged."""


@runtime_checkable
class Objective(Protocol):
    """A training method: a frozen dataclass that owns everything peculiar to it.

    The step knows no objective by name. `prepare` sees the whole global batch and makes every
    random draw; `loss` sees some of its rows and returns sums, so that the number of
    micro-batches cannot change the result.
    """

    @property
    def view(self) -> str:
        """Name the recipe in `xmae_jax.data.views` that turns a record into this batch."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Give the patches along height and width, to which a view fits its contour."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Make the parameters, float32."""
        ...

    def start(self, params: Params) -> Params:
        """Make `extra` from the trained parameters, at the start or after `init_from`."""
        ...

    def prepare(self, batch: Batch, rng_key: jax.Array, step: jax.Array) -> Prepared:
        """Draw masks for the global batch, and weigh each term."""
        ...

    def loss(
        self,
        params: Params,
        frozen: Params,
        extra: Params,
        batch: Batch,
        rng_key: jax.Array,
        step: jax.Array,
    ) -> LossOut:
        """Sum each term over the rows of `batch`; a draw per row belongs into `prepare`."""
        ...

    def after_update(self, params: Params, extra: Params, step: jax.Array) -> Params:
        """Move state that follows the parameters, such as an average of them."""
        ...

    def predict_fns(self) -> dict[str, Callable[..., dict[str, jax.Array]]]:
        """Name -> `fn(params, frozen, extra, batch, rng)`, a dict of arrays with first axis b."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Turns rows of one of the objective's predictions into numbers and pictures."""

    predict: str

    def evaluate(self, splits: Any) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of each split."""
        ...

    def table(self, metrics: dict[str, Any]) -> str:
        """Write the metrics for a terminal."""
        ...

    def draw(self, rows: Any, path: Path, *, title: str) -> None:
        """Draw a page of rows."""
        ...
