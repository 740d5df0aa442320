"""Score a finished run on what was held out, or a file of predictions without any model.

What is scored goes by what the run's objective predicts, or by the file's columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xmae_jax.config import Config, ConfigError
from xmae_jax.scores.reports import is_header
from xmae_jax.tasks import evaluate_findings, evaluate_reports, evaluate_texts
from xmae_jax.tasks.evaluators import predicted
from xmae_jax.tasks.held_out import read_text
from xmae_jax.tasks.model import load_run, refuse_other_changes

SCORED: dict[str, Callable[..., None]] = {
    "classify": evaluate_findings.run,
    "likelihood": evaluate_texts.run,
    "write": evaluate_reports.run,
}
"""Prediction -> what scores it."""


def run(config: Config, workdir: Path, *, split: str | None, against: Path | None) -> None:
    """Score the newest checkpoint of a run on `split`, or on "val" and "test" as far as there.

    `config` is the run's own with another `data` or `mesh`, if so wished. Raises ConfigError
    for a split that is not there, and Leaked where films stand in training too.
    """
    loaded = load_run(workdir)
    refuse_other_changes(config, loaded, task="evaluate")
    there = predicted(loaded.config, loaded.objective)
    scored = {name: of for name, of in SCORED.items() if name in there}
    if not scored:
        raise ConfigError(f"--workdir={workdir}: objective {config.objective['name']!r} predicts"
                          " no findings and writes no reports")  # fmt: skip
    if against is not None and [*scored] == ["likelihood"]:
        raise ConfigError(f"--against={against}: the run sees no films, and how well it foretells"
                          " texts is not compared")  # fmt: skip
    for one in scored.values():
        one(loaded, config, split=split, against=against)


def run_file(file: Path, *, split: str | None, against: Path | None, folder: Path | None) -> None:
    """Score a file of predictions, and write what comes of it if there is a folder for it."""
    of_reports = is_header(read_text(file).partition("\n")[0])
    scorer = evaluate_reports.run_file if of_reports else evaluate_findings.run_file
    scorer(file, split=split, against=against, folder=folder)
