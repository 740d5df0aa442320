"""Findings and their sides from the text of a report, by rules; see `rules.py` and `engine.py`."""

from xmae_jax.scores.labeller.engine import Labels, label, sides
from xmae_jax.scores.labeller.rules import CHEXPERT, FURTHER

__all__ = ["CHEXPERT", "FURTHER", "Labels", "label", "sides"]
