"""The inference loop: run a predict function over records, yield real rows in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xmae_jax import sharding
from xmae_jax.data.batch import LoadStep, loader
from xmae_jax.typing import TrainState

Predict = Callable[[TrainState, dict[str, jax.Array]], dict[str, jax.Array]]
Row = dict[str, Any]


def compile_predict(
    fn: Callable[..., Any], mesh: Mesh, key: jax.Array, *, leave_out: Collection[str] = ()
) -> Predict:
    """Jit `fn(params, frozen, extra, batch, key)`; batch and outputs lie whole on every device.

    leave_out: large arrays of the batch that nobody wants back.
    """

    def predict(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        kept = {name: array for name, array in batch.items() if name not in leave_out}
        return {**kept, **fn(state.params, state.frozen, state.extra, batch, key)}

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def rows(
    predict: Predict, state: TrainState, load: LoadStep, *, steps: int, mesh: Mesh, threads: int
) -> Iterator[Row]:
    """Yield a dict per record, once each and in order: the batch's arrays and the prediction's.

    Padding rows of the last batch are dropped here.
    """
    for host in loader(load, first=0, last=steps, workers=0, threads=threads):
        batch = sharding.to_global(host, mesh, len(load.ids(0)))
        whole = jax.device_get(predict(state, batch))
        for i in np.flatnonzero(whole["mask"]):
            yield {name: array[i] for name, array in whole.items()}
