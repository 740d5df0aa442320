"""The reports of a split, and what the evaluator of reports is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xmae_jax.config import Config
from xmae_jax.data.findings import place_of
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import Records, Report
from xmae_jax.data.report_text import ReportText
from xmae_jax.data.studies import Studies
from xmae_jax.evaluators.report import Study
from xmae_jax.scores.agreement import NAMES
from xmae_jax.tasks.split import Split


class Told(Sequence[Study]):
    """The studies of a source, each read when it is asked for: films and all."""

    def __init__(self, source: Records | Studies, text: ReportText):
        self._source, self._text = source, text

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Study:  # pyright: ignore[reportIncompatibleMethodOverride]
        record = self._source[index]
        return Study(
            **{name: record[name] for name in ("id", "patient", "study", "source")},
            reference=self._text.target(record["report"]),
            labels=_labels(record["labels"]),
        )


def _labels(labels: np.ndarray) -> tuple[float, ...]:
    """Put labels of a record into the order of the labeller; NaN for what records do not have."""
    found = []
    for name in NAMES:
        try:
            found.append(float(labels[place_of(name)]))
        except ValueError:
            found.append(float("nan"))
    return tuple(found)


def studies_of(config: Config, split: Split) -> list[Told]:
    """Tell of the studies of each source of a split."""
    assert config.data.text is not None
    return [Told(source, config.data.text) for source in split.records]


def reports_of(split: Split, *, skip: bool) -> Iterator[Report]:
    """Yield the report of each study that is used, once; skip: leave damaged records out."""
    for source, rows in zip(split.records, split.once, strict=True):
        assert isinstance(source, Studies)
        for index in rows:
            try:
                report = source.report(int(index))
            except DataError:
                if not skip:
                    raise
            else:
                yield report
