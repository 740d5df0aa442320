"""The numbers of charts: how often each name occurs, and histograms of fixed bins."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from data_prep.pictures import short

_ROWS = 12  # of a table of counts; the rest is one row
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Row:
    """A name, how often it occurs, and its share of all."""

    name: str
    count: int
    share: float


@dataclass(frozen=True)
class Bars:
    """How often each of some names occurs, the most frequent first."""

    title: str
    gloss: str
    rows: tuple[Row, ...]

    @property
    def longest(self) -> float:
        """The largest share, which fills the width."""
        return max(row.share for row in self.rows)


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width from low to high."""

    title: str
    gloss: str
    low: float
    high: float
    counts: tuple[int, ...]
    median: float

    @property
    def highest(self) -> int:
        """The largest count."""
        return max(self.counts)


def bars(title: str, counts: Mapping[str, int], *, unnamed: str, gloss: str = "") -> Bars:
    """Order counts; what has no name is called `unnamed`, and rare names share a row."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [Row(short(name) or unnamed, count, count / total) for name, count in ordered]
    if len(rows) > _ROWS:
        rest = sum(row.count for row in rows[_ROWS - 1 :])
        told = Row(f"{len(rows) - _ROWS + 1:,} others", rest, rest / total)
        rows = [*rows[: _ROWS - 1], told]
    return Bars(title, gloss, tuple(rows))


def histogram(
    title: str,
    values: Iterable[float],
    *,
    low: float = 0.0,
    high: float | None = None,
    bins: int = 32,
    gloss: str = "",
) -> Histogram | None:
    """Count values in bins; None if there are none.

    Without `high` the bins end at the next round number above the largest.
    """
    found = np.fromiter(values, np.float64)
    found = found[np.isfinite(found)]
    if not found.size:
        return None
    top = _round_up(float(found.max())) if high is None else high
    counts, _ = np.histogram(np.clip(found, low, top), bins=bins, range=(low, top))
    return Histogram(
        title=title,
        gloss=gloss,
        low=low,
        high=top,
        counts=tuple(int(count) for count in counts),
        median=float(np.median(found)),
    )


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(factor * power for factor in _ROUND if factor * power >= value))
