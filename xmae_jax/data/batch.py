"""Records to host batches: read, view, stack, pad; threads or processes by Grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from xmae_jax.data.records import Records

View = Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]


def row_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Make the generator of one row's crop; `row` counts in the global batch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, row))))


@dataclasses.dataclass(frozen=True)
class LoadStep:
    """Step -> this host's rows of its batch; a picklable function, so it runs in any worker."""

    ids: Callable[[int], Int[np.ndarray, "b 2"]]
    sources: Sequence[Records]
    view: View
    seed: int
    rows: slice

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Load, view and stack; rows whose source is -1 are padding."""
        ids = self.ids(int(step))
        examples, real = [], []
        for row in range(*self.rows.indices(len(ids))):
            source, index = (int(i) for i in ids[row])
            real.append(source >= 0)
            if source < 0:
                # Padding stands at the end of a batch, behind at least one real row.
                examples.append(examples[0])
                continue
            record = self.sources[source][index]
            examples.append(self.view(record, row_rng(self.seed, int(step), row)))
        batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
        return {**batch, "mask": np.array(real), "id": ids[self.rows]}


def loader(
    load: LoadStep, *, first: int, last: int, workers: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of steps first .. last - 1, in order, read ahead.

    Grain parallelises over whole steps, by threads, or by `workers` processes if there are any;
    the bytes are the same for every choice and from every start.
    """
    steps = grain.MapDataset.range(first, last).map(load)
    if workers:
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        options = grain.MultiprocessingOptions(num_workers=workers)
        return iter(steps.to_iter_dataset(read).mp_prefetch(options))
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(steps.to_iter_dataset(read))


@dataclasses.dataclass(frozen=True)
class EveryRow:
    """Ids of every record once, in order, in batches of `batch_size`; the last is padded.

    With a limit, that many records spread evenly over all sources.
    """

    sizes: tuple[int, ...]
    batch_size: int
    limit: int

    @property
    def total(self) -> int:
        """How many records there are to see."""
        return min(sum(self.sizes), self.limit)

    @property
    def steps(self) -> int:
        """How many batches that makes."""
        return -(-self.total // self.batch_size)

    def __call__(self, step: int) -> Int[np.ndarray, "b 2"]:
        """Return (source, index) of each row; (-1, -1) is padding."""
        turn = step * self.batch_size + np.arange(self.batch_size)
        place = np.minimum(turn, self.total - 1) * sum(self.sizes) // self.total
        ends = np.cumsum(self.sizes)
        source = np.searchsorted(ends, place, side="right")
        ids = np.stack([source, place - (ends - self.sizes)[source]], axis=1)
        ids[turn >= self.total] = -1
        return ids.astype(np.int32)
