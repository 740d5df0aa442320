"""A split of every source: its records, and which of them a run uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow
from xmae_jax.data.index import Entry, read_entries
from xmae_jax.data.records import Records
from xmae_jax.data.studies import Studies, open_studies
from xmae_jax.data.subset import Part, Rows, Subset, rows_digest


@dataclasses.dataclass(frozen=True)
class Split:
    """Records, or studies, of every source, and which of them are used."""

    records: Sequence[Records | Studies]
    part: Part
    subset: Subset

    @cached_property
    def entries(self) -> list[list[Entry]]:
        """The lines of `index.csv` of each source, in the order of its records or studies."""
        lines = [
            of.entries
            if isinstance(of, Studies)
            else [entry for entry in read_entries(of.directory) if entry.split == of.split]
            for of in self.records
        ]
        assert [len(of) for of in lines] == [len(of) for of in self.records]
        return lines

    @property
    def film_records(self) -> list[Records]:
        """The sources, where all of them are of films."""
        return [of for of in self.records if isinstance(of, Records)]

    @cached_property
    def chosen(self) -> Rows | None:
        """Rows of an epoch of each source; None is every record once."""
        if not self.subset.touches(self.part):
            return None
        try:
            return self.subset.rows(self.entries, self.part)
        except ValueError as error:
            raise ConfigError(f"config.data.{error}") from None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of an epoch of each source."""
        return tuple(len(rows) for rows in self.chosen or self.records)

    @property
    def digests(self) -> tuple[str, ...]:
        """Names the rows of an epoch of each source."""
        digests = tuple(of.digest for of in self.records)
        if self.chosen is None:
            return digests
        return tuple(rows_digest(d, rows) for d, rows in zip(digests, self.chosen, strict=True))

    @cached_property
    def once(self) -> Rows:
        """Indices of the records of each source that are used, in order."""
        if self.chosen is None:
            return tuple(np.arange(len(of)) for of in self.records)
        return tuple(np.unique(rows) for rows in self.chosen)

    @property
    def films(self) -> list[Entry]:
        """The lines of the films that are used, each once, source after source."""
        return [of[i] for of, rows in zip(self.entries, self.once, strict=True) for i in rows]

    def every(self, *, batch_size: int, limit: int) -> EveryRow:
        """List the films that are used, each once."""
        sizes = tuple(map(len, self.once))
        return EveryRow(sizes, batch_size, limit, None if self.chosen is None else self.once)

    def describe(self) -> str:
        """Tell what is trained on where that is not everything; empty else."""
        if self.part != "train" or self.chosen is None:
            return ""
        unit = "studies" if isinstance(self.records[0], Studies) else "films"
        return self.subset.describe(self.entries, self.chosen, unit=unit)


def open_split(config: Config, name: str, *, findings: tuple[str, ...]) -> Split:
    """Open one split of every source; ConfigError if it is not there, or nothing of it is used.

    findings: those of the objective, canonical; empty if it has none.
    """
    data = config.data
    key = {data.split: "split", data.eval_split: "eval_split"}.get(name)
    hint = "; None trains without evaluation" if key == "eval_split" else ""
    try:
        if data.text is None:
            records = [Records(path, name) for path in data.paths]
        else:  # a study counts once, whether or not its films are read
            views = max(data.text.views, 1)
            records = [open_studies(path, name, views=views) for path in data.paths]
    except ValueError as error:
        where = f"config.data.{key}" if key else "config.data.path"
        raise ConfigError(f"{where}: {error}{hint}") from None
    for option in ("shots", "balance"):
        if getattr(data, option) is not None and not findings:
            raise ConfigError(f"config.data.{option}: the objective has no findings")
    part: Part = "test" if key is None else "train" if key == "split" else "val"
    subset = Subset(
        seed=config.seed,
        label_fraction=data.label_fraction,
        shots=data.shots,
        leave_out_source=data.leave_out_source,
        balance=data.balance,
        findings=findings,
    )
    split = Split(records, part, subset)
    _ = split.chosen
    return split


def class_stats(
    *splits: Split,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Count the films in which each finding is present, is certain, and is uncertain."""
    labels = np.concatenate([of.subset.labels(of.films) for of in splits])
    masks = (labels == 1.0, np.isin(labels, (0.0, 1.0)), labels == -1.0)
    positive, known, unsure = (tuple(mask.sum(axis=0).astype(float).tolist()) for mask in masks)
    return positive, known, unsure


def check_both_sides(held_out: Split) -> None:
    """Raise ConfigError if nothing can be chosen on a split, since no finding has a score."""
    positive, known, _ = map(np.array, class_stats(held_out))
    if not ((0 < positive) & (positive < known)).any():
        raise ConfigError(
            f"config.data.eval_split: on {held_out.records[0].split!r} is chosen, and no finding is"
            " known there both present and absent"
        )
