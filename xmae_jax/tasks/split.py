"""A split of every source: its records, and which of them a run uses."""

from __future__ import annotations

import dataclasses

from xmae_jax.config import Config, ConfigError
from xmae_jax.data.index import Entry, read_entries
from xmae_jax.data.records import Records
from xmae_jax.data.subset import Rows, Subset, rows_digest


@dataclasses.dataclass(frozen=True)
class Split:
    """Records of every source, with their lines of `index.csv` in the same order."""

    name: str
    records: list[Records]
    entries: list[list[Entry]]
    chosen: Rows | None
    """Rows of an epoch of each source; None is every record once."""
    told: str
    """What is trained on, where that is not everything; empty else."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of an epoch of each source."""
        return tuple(len(rows) for rows in self.chosen or self.records)

    @property
    def digests(self) -> tuple[str, ...]:
        """Names what of each source is used."""
        digests = [records.digest for records in self.records]
        if self.chosen is None:
            return tuple(digests)
        return tuple(rows_digest(d, rows) for d, rows in zip(digests, self.chosen, strict=True))

    @property
    def films(self) -> list[Entry]:
        """The lines of all films that are used, each once."""
        if self.chosen is None:
            return [entry for of in self.entries for entry in of]
        used = [sorted(set(rows.tolist())) for rows in self.chosen]
        return [of[i] for of, rows in zip(self.entries, used, strict=True) for i in rows]


def open_split(config: Config, name: str, *, findings: tuple[str, ...]) -> Split:
    """Open one split of every source, and choose what is used of it.

    findings: those of the objective, canonical; empty if it has none. Raises ConfigError.
    """
    data = config.data
    try:
        records = [Records(path, name) for path in data.paths]
    except ValueError as error:
        hint = "; None trains without evaluation" if name == data.eval_split else ""
        raise ConfigError(f"config.data: {error}{hint}") from None
    entries = [[e for e in read_entries(path) if e.split == name] for path in data.paths]
    for path, of, there in zip(data.paths, entries, records, strict=True):
        assert len(of) == len(there), path
    subset = Subset(
        seed=config.seed,
        label_fraction=data.label_fraction,
        shots=data.shots,
        leave_out_source=data.leave_out_source,
        balance=data.balance,
        findings=findings,
    )
    for key in ("shots", "balance"):
        if getattr(data, key) is not None and not findings:
            raise ConfigError(f"config.data.{key}: the objective has no findings")
    part = {data.split: "train", data.eval_split: "val"}.get(name, "test")
    if not subset.touches(part):
        return Split(name, records, entries, None, "")
    try:
        rows = subset.rows(entries, part)
    except ValueError as error:
        raise ConfigError(f"config.data.{error}") from None
    told = subset.describe(entries, rows) if part == "train" else ""
    return Split(name, records, entries, rows, told)
