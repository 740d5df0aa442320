"""Records to host batches: read, view, stack, pad; threads or processes by Grain."""

from __future__ import annotations

import dataclasses
import gc
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from xmae_jax.data.processes import die_with_parent
from xmae_jax.data.records import DataError

Arrays = dict[str, np.ndarray]
View = Callable[[dict[str, Any], np.random.Generator, Arrays], Arrays]
"""(record, random numbers, the example's rows of a batch, or nothing) -> the example.

A view may write an array straight into its row, and returns it all the same.
"""


@runtime_checkable
class Source(Protocol):
    """Random access to examples: `Records`, or features that were made of them."""

    digest: str

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one; DataError if it is damaged."""
        ...

    def damage(self, index: int, error: Exception) -> DataError:
        """Name an example that is damaged."""
        ...

    def where(self, index: int) -> str:
        """Say where an example lies."""
        ...


def row_rng(seed: int, step: int, row: int) -> np.random.Generator:
    """Make the generator of one row's crop; `row` counts in the global batch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, row))))


class LoaderError(OSError):
    """A loader process died; main exits 74."""


@dataclasses.dataclass(frozen=True)
class LoadStep:
    """Step -> this host's rows of its batch; a picklable function, so it runs in any worker.

    A row of `mask` False holds a copy of another row: padding (source -1), or, with `skip`, a
    record that cannot be read, which keeps its id. Without `skip` that is a DataError, and always
    if no record of a step can be read.
    """

    ids: Callable[[int], Int[np.ndarray, "b 2"]]
    sources: Sequence[Source]
    view: View
    seed: int
    rows: slice | Int[np.ndarray, " r"]
    """Which rows are this host's."""
    skip: bool

    def __call__(self, step: int) -> Arrays:
        """Load, view and pack."""
        ids, step = self.ids(int(step)), int(step)
        rows = np.arange(len(ids))[self.rows].tolist()
        real = np.zeros(len(rows), bool)
        batch: Arrays = {}
        damage = None
        # A host with nothing to read of its own looks for a copy among the others' rows.
        turns = [*enumerate(rows), *((0, row) for row in range(len(ids)))]
        for turn, (place, row) in enumerate(turns):
            if ids[row, 0] < 0:
                continue
            if turn >= len(rows) and batch:
                break
            try:
                self._pack(batch, place, len(rows), step, row, ids)
                real[place] = turn < len(rows)
            except DataError as error:
                if not self.skip:
                    raise
                damage = error
        if damage is not None and not batch:
            raise damage
        for values in batch.values():
            values[~real] = values[real.argmax()]
        return {**batch, "mask": real, "id": ids[self.rows]}

    def _pack(
        self, batch: Arrays, place: int, size: int, step: int, row: int, ids: np.ndarray
    ) -> None:
        """Put the example of `row` at a place of the batch, which the first one sets up."""
        source, index = (int(i) for i in ids[row])
        records = self.sources[source]
        record = records[index]
        slots = {name: values[place] for name, values in batch.items()}
        try:
            example = self.view(record, row_rng(self.seed, step, row), slots)
        except DataError as error:
            raise records.damage(index, error) from error
        for name, value in example.items():
            if name not in batch:
                batch[name] = np.empty((size, *value.shape), value.dtype)
            if name not in slots or not np.may_share_memory(value, slots[name]):
                batch[name][place] = value


def _start_worker(index: int, count: int) -> None:
    # Both signals go to a whole group of processes; what they mean is for the main one to say.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def loader(
    load: LoadStep, *, first: int, last: int, workers: int, threads: int
) -> Generator[Arrays, None, None]:
    """Yield the batches of steps first .. last - 1, in order, read ahead.

    Grain parallelises over whole steps, by threads, or by `workers` processes if there are any;
    the bytes are the same for every choice and from every start. The processes end with the
    iterator. Raises what `load` raises, and LoaderError if a process died.
    """
    steps = grain.MapDataset.range(first, last).map(load)
    if workers:
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = iter(steps.to_iter_dataset(read).mp_prefetch(options, _start_worker))
    else:
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = iter(steps.to_iter_dataset(read))
    try:
        yield from batches
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):  # Grain has no class of its own for it
            raise
        raise LoaderError(
            "a loader process died (killed, or out of memory, or of room in /dev/shm?);"
            f" try fewer than config.data.workers={workers}, or 0, which reads by threads"
        ) from error
    finally:
        batches.close()
        del batches
        if workers:
            gc.collect()  # cycles in Grain hold the last batches, and so their shared memory


@dataclasses.dataclass(frozen=True)
class EveryRow:
    """Ids of every record once, in order, in batches of `batch_size`; the last is padded.

    With a limit, that many records spread evenly over all sources.
    """

    sizes: tuple[int, ...]
    batch_size: int
    limit: int
    chosen: tuple[Int[np.ndarray, " _"], ...] | None = dataclasses.field(
        default=None, compare=False
    )
    """Indices of the records to see of each source, `sizes` of them; None is all."""

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
        index = place - (ends - self.sizes)[source]
        if self.chosen is not None:
            index = np.concatenate(self.chosen)[place]
        ids = np.stack([source, index], axis=1)
        ids[turn >= self.total] = -1
        return ids.astype(np.int32)
