"""Score the reports that a run writes, or that stand in a file of predictions.

Each split's scores, predictions and page go to `eval/report_<split>/step_<n>/` of the run, those of
other data than its own to `eval/report_<split>_<digest of the data>/`. The page shows films and
reports of patients, so all of it is its owner's alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from xmae_jax import config as config_lib
from xmae_jax import writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import decode_image
from xmae_jax.evaluators.report import Reporting, comparison_table, table
from xmae_jax.evaluators.report_page import report_page
from xmae_jax.rundir import TOKENIZER
from xmae_jax.scores.report_summary import compare, summarise
from xmae_jax.scores.reports import Reports, Written, from_csv
from xmae_jax.scores.text import outside
from xmae_jax.tasks import trained_on
from xmae_jax.tasks.held_out import Model, newest, open_held_out, place, read_text, splits_of
from xmae_jax.tasks.model import LoadedRun
from xmae_jax.tasks.reports import reports_of, studies_of
from xmae_jax.tasks.split import Split
from xmae_jax.tasks.text import run_tokenizer

NAME = "report"


def run(loaded: LoadedRun, config: Config, *, split: str | None, against: Path | None) -> None:
    """Score a run on `split`, or on "val" and "test" as far as there; see evaluate.py."""
    workdir = loaded.workdir
    own = trained_on.is_own(loaded, config)
    learnt = trained_on.learnt_splits(workdir, dataclasses.asdict(loaded.config.data))
    scored = splits_of(config, split, learnt=learnt if own else ())
    held = {name: open_held_out(config, loaded.objective, name) for name in scored}
    checked = trained_on.check(loaded, config, scored)
    training = _training_texts(loaded, config)
    tokenizer, model = run_tokenizer(workdir), None
    model = Model(loaded, config, predict="write", tokenizer=workdir / TOKENIZER)
    for name, one in held.items():
        assert one is not None and config.data.text is not None
        evaluator = Reporting(
            tokenizer,
            {name: studies_of(config, one)},
            training,
            config.data.text.sections,
            config.data.text.marks,
            meteor=True,
        )
        rows = list(model.rows(one, "written", "has_image"))
        metrics, text = evaluator.evaluate({name: rows.__iter__})
        if metrics["about"]["without_film"] == len(rows):
            raise ConfigError(f"--split={name}: no study there has a film")
        metrics["about"] |= {
            **trained_on.about(loaded, config, name, checked),
            "unreadable": len(one.films) - len(rows),
        }
        digest = trained_on.data_digest(config)
        folder = workdir / "eval" / place(NAME, name, None if own else digest)
        folder /= f"step_{loaded.step}"
        writers.write_atomic(folder / "predictions.csv", text, private=True)
        metrics["outside"] = outside.read(folder / "predictions.csv", split=name)
        reports = from_csv(text, name="predictions.csv")
        _tell(reports, metrics, against=against, folder=folder, digest=digest, split=one)


def _training_texts(loaded: LoadedRun, config: Config) -> list[str] | None:
    """Read the texts that a run was trained on, and its decoder before; None if they are gone."""
    saved, text = loaded.config, loaded.config.data.text
    assert text is not None
    if trained_on.is_own(loaded, config):
        data = dataclasses.replace(saved.data, path=config.data.path)
        saved = dataclasses.replace(saved, data=data)
    try:
        training = [open_held_out(saved, loaded.objective, saved.data.split)]
        for workdir, tree in trained_on.before(loaded):
            if tree is not None and tree["data"].get("text") is not None:
                one = config_lib.resolve(config_lib.from_json(workdir / "config.json"))
                training.append(open_held_out(one, loaded.objective, one.data.split))
    except (DataError, ConfigError):
        training = [None]
    if None in training:
        print("note: what the run was trained on cannot be read, so copies are not looked for")
        return None
    return [
        text.target(cast(Mapping[str, str], report))
        for split in training
        if split is not None
        for report in reports_of(split, skip=True)
    ]


def run_file(file: Path, *, split: str | None, against: Path | None, folder: Path | None) -> None:
    """Score a file of reports, and write what comes of it if there is a folder for it."""
    reports = from_csv(read_text(file), name=str(file))
    there = list(dict.fromkeys(one.split for one in reports.studies))
    if split is not None and split not in there:
        raise ConfigError(f"--split={split}: {file} has {', '.join(there)}")
    for name in there if split is None else [split]:
        metrics = summarise(reports, name, meteor=True)
        metrics["about"] = {"predictions": str(file)}
        metrics["outside"] = outside.read(file, split=name)
        own = folder and folder / place(NAME, name, None)
        _tell(reports, metrics, against=against, folder=own, digest=None, split=None)


def _tell(
    reports: Reports,
    metrics: dict[str, Any],
    *,
    against: Path | None,
    folder: Path | None,
    digest: str | None,
    split: Split | None,
) -> None:
    """Compare, print and write one split's scores; split: where the films are."""
    print(table(metrics))
    if against is not None:
        file = newest(NAME, against, metrics["split"], digest=digest)
        other = from_csv(read_text(file), name=str(file))
        metrics["against"] = {
            "file": str(file),
            **compare(reports, other, metrics["split"], meteor=True),
        }
        print(comparison_table(metrics["against"]))

    def films(study: Written) -> Sequence[UInt8[np.ndarray, "h w"]]:
        if split is None:
            return []
        example = split.records[study.source_index][study.place]
        return [decode_image(film["image"]) for film in example["films"]]

    if folder is not None:
        page = report_page(reports, metrics, films=films)
        for name, text in (
            ("metrics.json", json.dumps(metrics, indent=1) + "\n"),
            ("report.html", page),
        ):
            writers.write_atomic(folder / name, text, private=True)
        print(f"report: {folder / 'report.html'}")
