"""Objectives by the name that a config gives; a new method is a new file and a line here."""

from xmae_jax.objectives.mae import Mae
from xmae_jax.objectives.report import Report
from xmae_jax.objectives.segment import Segment
from xmae_jax.objectives.supervised import Supervised

OBJECTIVES = {"mae": Mae, "report": Report, "segment": Segment, "supervised": Supervised}
