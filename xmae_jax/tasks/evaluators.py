"""Which evaluator looks at which prediction while a run trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from xmae_jax.config import Config
from xmae_jax.data.text import Tokenizer
from xmae_jax.evaluators.classification import Classification, Splits
from xmae_jax.evaluators.perplexity import Perplexity
from xmae_jax.evaluators.reconstruction import Reconstruction
from xmae_jax.evaluators.report import Reporting
from xmae_jax.evaluators.segmentation import Segmentation
from xmae_jax.tasks.reports import studies_of
from xmae_jax.tasks.split import Split
from xmae_jax.typing import Evaluator


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an evaluator may be made of."""

    config: Config
    objective: Any
    held_out: Split
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True)
class _HeldOut(Classification):
    """Writes held-out films under the name of their split, as thresholds go by it."""

    split: str

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of "val", the loop's name for them."""
        return super().evaluate({self.split: splits["val"]})


def _classification(seen: Seen) -> Evaluator:
    split = seen.held_out.records[0].split
    return _HeldOut(
        findings=seen.objective.findings,
        entries={split: seen.held_out.entries},
        train_positive=np.array(seen.objective.counts[0]),
        split=split,
    )


@dataclasses.dataclass(frozen=True)
class _HeldOutReports(Reporting):
    """Writes held-out studies under the name of their split, and scores them."""

    split: str

    def evaluate(self, splits: Splits) -> tuple[dict[str, Any], str]:
        """Return (metrics, predictions as CSV) of the rows of "val", the loop's name for them."""
        return super().evaluate({self.split: splits["val"]})


def _report(seen: Seen) -> Evaluator:
    assert seen.tokenizer is not None and seen.config.data.text is not None
    studies, split = studies_of(seen.config, seen.held_out), seen.held_out.records[0].split
    return _HeldOutReports(
        tokenizer=seen.tokenizer,
        studies={split: studies},
        training=None,  # to read all of it would take longer than a step of any size
        sections=seen.config.data.text.sections,
        marks=seen.config.data.text.marks,
        meteor=False,
        split=split,
    )


def _perplexity(seen: Seen) -> Evaluator:
    assert seen.tokenizer is not None
    return Perplexity(seen.tokenizer)


EVALUATORS: dict[str, tuple[str, Callable[[Seen], Evaluator]]] = {
    "classify": ("classification", _classification),
    "likelihood": ("perplexity", _perplexity),
    "reconstruct": ("reconstruction", lambda seen: Reconstruction()),
    "segment": ("segmentation", lambda seen: Segmentation()),
    "write": ("report", _report),
}
"""Prediction -> (name of the evaluator, what makes it)."""


def predicted(config: Config, objective: Any) -> list[str]:
    """Name those of an objective's predictions that any evaluator reads.

    Of a model that sees no film, no report is asked for.
    """
    blind = config.data.text is not None and config.data.text.views == 0
    there = objective.predict_fns()
    return [name for name in EVALUATORS if name in there and not (blind and name == "write")]


def evaluators_of(seen: Seen) -> dict[str, Evaluator]:
    """Make what looks at an objective's predictions, by their names."""
    return {
        EVALUATORS[one][0]: EVALUATORS[one][1](seen)
        for one in predicted(seen.config, seen.objective)
    }
