"""Score how well a run foretells reports: the perplexity of what is held out.

Each split's scores and sums go to `eval/perplexity_<split>/step_<n>/` of the run, those of other
data than its own to `eval/perplexity_<split>_<digest of the data>/`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from xmae_jax import writers
from xmae_jax.config import Config
from xmae_jax.evaluators.perplexity import Perplexity
from xmae_jax.rundir import TOKENIZER
from xmae_jax.tasks import trained_on
from xmae_jax.tasks.held_out import Model, open_held_out, place, splits_of
from xmae_jax.tasks.model import LoadedRun
from xmae_jax.tasks.text import run_tokenizer

NAME = "perplexity"


def run(loaded: LoadedRun, config: Config, *, split: str | None, against: Path | None) -> None:
    """Score a run on `split`, or on "val" and "test" as far as there; nothing is compared."""
    workdir = loaded.workdir
    own = trained_on.is_own(loaded, config)
    learnt = trained_on.learnt_splits(workdir, dataclasses.asdict(loaded.config.data))
    scored = splits_of(config, split, learnt=learnt if own else ())
    checked = trained_on.check(loaded, config, scored)
    evaluator = Perplexity(run_tokenizer(workdir))
    model = Model(loaded, config, predict=evaluator.predict, tokenizer=workdir / TOKENIZER)
    for name in scored:
        held = open_held_out(config, loaded.objective, name)
        assert held is not None
        rows = list(model.rows(held, "nll", "tokens", "text"))
        metrics, text = evaluator.evaluate({name: rows.__iter__})
        metrics["about"] = {
            **trained_on.about(loaded, config, name, checked),
            "unreadable": len(held.films) - len(rows),
        }
        digest = None if own else trained_on.data_digest(config)
        folder = workdir / "eval" / place(NAME, name, digest) / f"step_{loaded.step}"
        writers.write_atomic(folder / "predictions.csv", text)
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        print(f"{evaluator.table(metrics)}\nscores: {folder / 'metrics.json'}")
