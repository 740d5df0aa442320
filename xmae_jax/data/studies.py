"""Studies as a source of examples: a patient's films taken together, and their one report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xmae_jax.data.index import Entry, read_entries
from xmae_jax.data.records import DataError, Records, Report, decode_image
from xmae_jax.scores.groups import is_frontal
from xmae_jax.seal import json_digest


class Studies:
    """Random access to the studies of one split; threads and pickled copies may share it.

    An example has `films`, its records that have a film, `views` of them at most, frontal ones
    first; and of its first record `id`, `patient`, `study`, `source`, `split`, `labels` and
    `report`. Studies stand in the order of their first records. A set without films (of
    `data_prep.reports`) gives studies with a report alone.
    """

    def __init__(self, records: Records, entries: Sequence[Entry], *, views: int) -> None:
        """Group records; entries: the lines of `index.csv` of these records, in their order."""
        if len(entries) != len(records):
            raise ValueError(f"{len(entries)} lines of an index for {len(records)} records")
        self.records, self.views = records, views
        self.directory, self.split, self.size = records.directory, records.split, records.size
        grouped: dict[tuple[str, str], list[int]] = {}
        for place, entry in enumerate(entries):
            grouped.setdefault((entry.patient, entry.study), []).append(place)
        self._places = [
            [places[i] for i in frontal_first([entries[place].view for place in places])[:views]]
            for places in grouped.values()
        ]
        self.entries = [entries[places[0]] for places in self._places]
        """A line for each study: that of its first film. By them splits and subsets go."""
        self.digest = json_digest([records.digest, "studies", views])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a study; DataError names the record if one of its films is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"study {index} of {len(self)} in split {self.split!r}")
        films = [self.records[place] for place in self._places[index]]
        names = ("id", "patient", "study", "source", "split", "labels", "report")
        return {
            "films": [film for film in films if film["image"]],
            **{name: films[0][name] for name in names},
        }

    def report(self, index: int) -> Report:
        """Read the report of a study alone: one record, however many films there are."""
        return self.records[self._places[index][0]]["report"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def damage(self, index: int, error: Exception) -> DataError:
        """Name a study that is damaged by its film that is."""
        return self.records.damage(self._damaged(index), error)

    def where(self, index: int) -> str:
        """Say where the film of a study lies that is damaged, or else the first one."""
        return self.records.where(self._damaged(index))

    def _damaged(self, index: int) -> int:
        places = self._places[index]
        for place in places:
            try:
                if image := self.records[place]["image"]:
                    decode_image(image)
            except DataError:
                return place
        return places[0]


def frontal_first(views: Sequence[str]) -> list[int]:
    """Order films by their views: the first frontal one, the first other one, then the rest."""
    kinds = [is_frontal(view) for view in views]

    def order(i: int) -> tuple[bool, bool, int]:
        return kinds.index(kinds[i]) != i, not kinds[i], i

    return sorted(range(len(views)), key=order)


def open_studies(directory: str | os.PathLike, split: str, *, views: int) -> Studies:
    """Open the studies of a split of a data set; raises what `Records` and its index do."""
    entries = [entry for entry in read_entries(Path(directory)) if entry.split == split]
    return Studies(Records(directory, split), entries, views=views)
