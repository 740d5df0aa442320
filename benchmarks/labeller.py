"""Compare the rule labeller with labels of real reports, finding by finding.

    python -m benchmarks.labeller --reports REPORTS.csv [--policy uncertain_present]

REPORTS.csv is laid out as docs/labeller.md says: `study_id`, `findings` and `impression`, and a
column a finding, 1 or 0; lines without a value in any are left out. Halves of the reports are told
apart by a hash of `study_id`: the rules were written on half 0 alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xmae_jax.data.findings import FINDINGS, find
from xmae_jax.scores.agreement import POLICIES
from xmae_jax.scores.labeller import CHEXPERT, FURTHER, label

HALVES = (0, 1)


class Report(NamedTuple):
    """A report and its labels, by our names."""

    half: int
    text: str
    labels: dict[str, bool]


class Outcome(NamedTuple):
    """How often labeller and labels agree on a finding."""

    both: int
    added: int
    missed: int

    @property
    def f1(self) -> float:
        """F1; of nothing it is 0."""
        return 2 * self.both / max(2 * self.both + self.added + self.missed, 1)


class Scores(NamedTuple):
    """What came out."""

    findings: dict[str, Outcome]
    micro: float
    """F1 over all findings that both know."""
    micro_14: float
    """F1 over those of them that are of CheXpert's 14."""


def read(path: Path) -> list[Report]:
    """Read the reports that have a label for every finding that the labeller knows."""
    reports = []
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            places = {column: find(column) for column in row}
            names = {c: FINDINGS[i] for c, i in places.items() if i is not None}
            known = {c: name for c, name in names.items() if name in (*CHEXPERT, *FURTHER)}
            if any(row[column] == "" for column in known):
                continue
            half = hashlib.sha256(row["study_id"].encode()).digest()[0] % len(HALVES)
            text = f"{row['findings']}\n\n{row['impression']}"
            labels = {name: row[column] == "1" for column, name in known.items()}
            reports.append(Report(half, text, labels))
    return reports


def compare(reports: Sequence[Report], policy: str) -> Scores:
    """Label reports, and count outcomes; what is uncertain counts by `policy`."""
    counts = {name: [0, 0, 0] for name in reports[0].labels}
    for report in reports:
        found = label(report.text)
        for name, there in report.labels.items():
            said = found[name]
            if said == -1 and policy == "uncertain_left_out":
                continue
            called = said == 1 or (said == -1 and policy == "uncertain_present")
            outcome = (called and there, called and not there, there and not called)
            for place, one in enumerate(outcome):
                counts[name][place] += one
    findings = {name: Outcome(*count) for name, count in counts.items()}
    return Scores(
        findings,
        _micro(list(findings.values())),
        _micro([one for name, one in findings.items() if name in CHEXPERT]),
    )


def _micro(outcomes: Sequence[Outcome]) -> float:
    return Outcome(*(sum(column) for column in zip(*outcomes, strict=True))).f1


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table a half."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--policy", choices=POLICIES, default="uncertain_absent")
    args = parser.parse_args(argv)
    reports = read(args.reports)
    for half in HALVES:
        own = [one for one in reports if one.half == half]
        started = time.perf_counter()
        scores = compare(own, args.policy)
        speed = len(own) / (time.perf_counter() - started)
        print(f"half {half}: {len(own):,} reports, {args.policy}, {speed:,.0f} reports a second")
        print("| finding | labels | both | added | missed | F1 |\n|---|---|---|---|---|---|")
        for name, one in sorted(scores.findings.items(), key=lambda item: -item[1].f1):
            cells = (one.both + one.missed, one.both, one.added, one.missed, f"{one.f1:.3f}")
            print(f"| {name} | {' | '.join(map(str, cells))} |")
        print(f"micro F1 {scores.micro:.3f}; of CheXpert's 14 {scores.micro_14:.3f}\n")


if __name__ == "__main__":
    main()
