"""Which records make up the global batch of step t: a pure function that knows no host count.

Every epoch of a source is a permutation of it by a Feistel network over the smallest even number
of bits that holds its size, walked until it falls inside (Black and Rogaway, Ciphers with Arbitrary
Finite Domains, 2002). The hash is our own, since NumPy does not promise its streams; tests hold
the first ids. Where some records are left out or drawn more often than others (`data/subset.py`),
an epoch is a permutation of a list of rows.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Int, UInt64

_ROUNDS = 4


def _mix(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Hash 64-bit integers (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permute(
    index: Int[np.ndarray, " n"], size: int, key: UInt64[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Send each index in [0, size) to another, one to one for any one key."""
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)

    def feistel(x: UInt64[np.ndarray, " m"], key: UInt64[np.ndarray, " m"]):
        left, right = x >> half, x & low
        for r in range(_ROUNDS):
            with np.errstate(over="ignore"):
                f = _mix(right + key + np.uint64(r) * np.uint64(0x9E3779B97F4A7C15))
            left, right = right, (left ^ f) & low
        return (left << half) | right

    x = feistel(index.astype(np.uint64), key)
    outside = x >= size
    while outside.any():
        x[outside] = feistel(x[outside], key[outside])
        outside = x >= size
    return x.astype(np.int64)


def mixture_counts(sizes: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Share `rows` among sources in proportion to their sizes, at least one each, of none none."""
    if not all(sizes):
        some = iter(mixture_counts(tuple(size for size in sizes if size), rows))
        return tuple(next(some) if size else 0 for size in sizes)
    exact = np.array(sizes) / sum(sizes) * rows
    counts = np.maximum(np.floor(exact).astype(int), 1)
    for i in np.argsort(counts - exact, kind="stable")[: max(rows - counts.sum(), 0)]:
        counts[i] += 1
    while counts.sum() > rows:
        counts[np.argmax(counts)] -= 1
    return tuple(int(c) for c in counts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The order of data of a run.

    The first `counts[0]` rows of every batch come from source 0, the next from source 1, and so
    on; each source goes through its records epoch by epoch.
    """

    seed: int
    sizes: tuple[int, ...]
    """Rows of an epoch of each source: its records, or as many as `chosen` lists."""
    counts: tuple[int, ...]
    digests: tuple[str, ...]
    """Digest of each source's records, so that a batch's digest names the data as well."""
    offsets: tuple[tuple[int, int], ...] = ()
    """(first step, batches passed over from there on), in order; of roll-backs."""
    chosen: tuple[Int[np.ndarray, " _"], ...] | None = dataclasses.field(
        default=None, compare=False
    )
    """Indices of the records of an epoch of each source, some perhaps several times; None is every
    record once. The digests name these rows too. A source of none has no rows of the batch."""

    def __post_init__(self) -> None:
        none = [size < 1 for size in self.sizes]
        if none != [count < 1 for count in self.counts] or (any(none) and self.chosen is None):
            raise ValueError(f"empty source: sizes {self.sizes}, rows of each {self.counts}")
        if self.chosen is not None and self.sizes != tuple(len(rows) for rows in self.chosen):
            raise ValueError(f"sizes {self.sizes} are not those of the rows that are chosen")

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return sum(self.counts)

    def ids(self, step: int) -> Int[np.ndarray, "b 2"]:
        """Return (source, index) of each row of the global batch of a step."""
        step += max((offset for first, offset in self.offsets if first <= step), default=0)
        blocks = []
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            if not count:
                continue
            place = step * count + np.arange(count, dtype=np.int64)
            epoch = (place // size).astype(np.uint64)
            with np.errstate(over="ignore"):
                seed = _mix(np.array([self.seed, source], np.uint64) + np.uint64(1))
                key = _mix(seed[0] ^ _mix(seed[1] + _mix(epoch)))
            index = permute(place % size, size, key)
            if self.chosen is not None:
                index = self.chosen[source][index]
            blocks.append(np.stack([np.full(count, source), index], axis=1))
        return np.concatenate(blocks).astype(np.int32)

    def batch_digest(self, step: int) -> str:
        """Return 16 hex digits over the record ids of a step, in order."""
        names = "\n".join(self.digests).encode()
        return hashlib.sha256(names + self.ids(step).astype("<i4").tobytes()).hexdigest()[:16]
