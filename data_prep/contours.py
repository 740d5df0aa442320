"""Which lung contour a film gets: a given one, the model's, the heuristic's, or none.

A contour is rated, and below a threshold the film falls back to the next kind. The model and the
heuristic rate each other: the model's contour loses a part of its rating where the heuristic says
something else, and the heuristic's is used only where it agrees with the model's.
"""

import functools
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_prep.given import Mask, read_given
from xmae_jax.data.film import FilmError
from xmae_jax.data.lungs import (
    MODEL,
    certainty,
    contour_of,
    dice,
    heuristic_lungs,
    is_frontal,
    mask_quality,
    rectangle,
)
from xmae_jax.data.sandbox import not_the_file

LUNGS = ("auto", "given", "model", "heuristic", "rectangle", "none")
RETROCARDIAC = {"exclude": 0, "include": 1}  # channel of the model
MIN_QUALITY = 0.6  # of a contour of the model or the heuristic that is used
FULL_AGREEMENT = 0.7  # Dice of both from which the heuristic does not count against the model


@dataclass(frozen=True)
class Contour:
    """A film's lung mask, and how far to trust it."""

    mask: Bool[np.ndarray, "h w"] | None
    source: str
    """"given:NAME", "model", "model:with_heart", "heuristic", "rectangle" or "none"."""
    quality: float
    """From 0 to 1; below MIN_QUALITY only for a given mask or the rectangle."""
    agreement: float
    """Dice of the model and the heuristic; NaN where not both were asked."""


NO_CONTOUR = Contour(None, "none", 0.0, math.nan)


def find_lungs(
    pixels: UInt8[np.ndarray, "h w"],
    given: Mask | None,
    *,
    lungs: str,
    retrocardiac: str,
    view: str,
    name: str,
    stored_size: tuple[int, int] | None = None,
) -> Contour:
    """Choose a film's contour; `name` is what the mask `given` is known by.

    A given mask that is empty, full, unreadable or of another shape than the film counts as
    absent; any other is used whatever its quality. It may have the shape of the pixels as the
    file stores them (`stored_size`), where these are not square. Model and heuristic know frontal
    films only; a film of unknown view is taken for one.
    """
    if lungs in ("auto", "given") and given is not None:
        mask = _given(given, (pixels.shape, stored_size or pixels.shape))
        if mask is not None:
            return Contour(mask, f"given:{name}", mask_quality(mask), math.nan)
    if lungs == "rectangle":
        mask = rectangle(pixels.shape)
        return Contour(mask, "rectangle", mask_quality(mask), math.nan)
    if lungs in ("given", "none") or not is_frontal(view):
        return NO_CONTOUR
    drawn = heuristic_lungs(pixels)
    if lungs == "heuristic":
        return _best([("heuristic", drawn, 1.0)], math.nan)
    probability = _model()(pixels)[:, :, RETROCARDIAC[retrocardiac]]
    found = contour_of(probability, pixels.shape)
    source = "model:with_heart" if retrocardiac == "include" else "model"
    agreement = dice(found, drawn)
    # The model may be right alone, where it is sure; the heuristic also takes to slices of a CT.
    sure = certainty(probability) * (0.7 + 0.3 * min(agreement / FULL_AGREEMENT, 1.0))
    return _best([(source, found, sure), ("heuristic", drawn, agreement)], agreement)


def _best(candidates: list[tuple[str, np.ndarray, float]], agreement: float) -> Contour:
    """Return the first contour (source, mask, trust in it) that is good enough."""
    for source, mask, trust in candidates:
        quality = mask_quality(mask) * trust
        if quality >= MIN_QUALITY:
            return Contour(mask, source, quality, agreement)
    return Contour(None, "none", 0.0, agreement)


def model_digest(lungs: str) -> str | None:
    """Return the sha256 of the model's weights, which such contours depend on, or None."""
    if lungs not in ("auto", "model"):
        return None
    return json.loads(MODEL.with_suffix(".json").read_text())["sha256"]


@functools.cache
def _model() -> Any:
    """Load the model, once a process and only where it is used: JAX takes seconds to import."""
    # One thread on the CPU: workers share the cores out, and a film's bytes depend on no number.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    with not_the_file():
        from xmae_jax.tasks.lungs import load_lung_model

        model = load_lung_model()
        model(np.zeros((64, 64), np.uint8))  # compiles
    return model


def _given(given: Mask, shapes: tuple[tuple[int, ...], ...]) -> Bool[np.ndarray, "h w"] | None:
    try:
        mask = read_given(given)
    except FilmError:
        return None
    stretched = [(mask.shape[0] / rows) / (mask.shape[1] / columns) for rows, columns in shapes]
    if min(abs(math.log(ratio)) for ratio in stretched) > 0.02 or mask.all() or not mask.any():
        return None
    return mask
