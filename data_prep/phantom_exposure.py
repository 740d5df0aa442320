"""From attenuation to a film: tone curve, noise, collimation, side marker."""

from __future__ import annotations

import numpy as np

from data_prep.phantom_anatomy import Film
from data_prep.phantom_raster import Draws

_GRAIN = 12
_MIX = 0.12  # share of its noise that a pixel gives to each neighbour, along either axis
_SPREAD = (1 - 2 * _MIX) ** 2 + 2 * _MIX**2  # variance that is left, along one axis
_MARKER = 0.035  # height of the letter
_LETTERS = {  # strokes (x0, y0, x1, y1) in a box of one letter's height
    "L": ((0, 0, 0, 1), (0, 1, 0.6, 1)),
    "R": (
        (0, 0, 0, 1),
        (0, 0, 0.5, 0.05),
        (0.5, 0.05, 0.55, 0.4),
        (0.55, 0.4, 0, 0.52),
        (0.2, 0.52, 0.6, 1),
    ),
}


def expose(attenuation: np.ndarray, film: Film) -> np.ndarray:
    """Return a film [h w] in [0, 1]; dense tissue is bright."""
    knee = film.knee
    tone = 1 - np.exp(np.clip(attenuation, 0, None) * -knee)
    tone *= 1 / (1 - float(np.exp(-0.95 * knee)))
    tone = film.low + (film.high - film.low) * tone**film.gamma
    noise = _mixed(_mixed(Draws(film.grain, _GRAIN).grain(tone.shape[0])).T).T
    tone += noise * (film.noise / _SPREAD) * (0.7 + 0.5 * tone)
    _collimate(tone, film)
    _mark(tone, film)
    return np.clip(tone, 0, 1)


def _mixed(noise: np.ndarray) -> np.ndarray:
    """Blur noise a little along its rows, as a detector does."""
    mixed = noise * (1 - 2 * _MIX)
    mixed[1:] += _MIX * noise[:-1]
    mixed[:-1] += _MIX * noise[1:]
    return mixed


def _collimate(tone: np.ndarray, film: Film) -> None:
    """Darken the borders that the beam did not reach."""
    size = tone.shape[0]
    near = (np.arange(size, dtype=np.float32) + 0.5) / size
    top, bottom, left, right = film.collimation
    for width, at, column in (
        (top, near, True),
        (bottom, 1 - near, True),
        (left, near, False),
        (right, 1 - near, False),
    ):
        if width:
            open_ = np.clip((at - width) * 250 + 1, 0, 1)
            tone *= open_[:, None] if column else open_[None, :]


def _mark(tone: np.ndarray, film: Film) -> None:
    """Lay the side marker's lead letter on the film (R stands left: the patient faces us)."""
    if not film.marker:
        return
    size, (x0, y0) = tone.shape[0], film.marker_at
    x0 = x0 if film.marker == "R" else 1 - x0 - 0.6 * _MARKER
    rows, cols = (
        slice(int((at - 0.01) * size), int((at + _MARKER + 0.01) * size) + 1) for at in (y0, x0)
    )
    y = (np.arange(size)[rows, None] + 0.5) / size
    x = (np.arange(size)[None, cols] + 0.5) / size
    near = np.full(np.broadcast_shapes(x.shape, y.shape), 1.0)
    for ax, ay, bx, by in _LETTERS[film.marker]:
        dx, dy = (bx - ax) * _MARKER, (by - ay) * _MARKER
        px, py = x - x0 - ax * _MARKER, y - y0 - ay * _MARKER
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
        near = np.minimum(near, np.hypot(px - along * dx, py - along * dy))
    ink = np.clip((0.0032 - near) * size + 0.5, 0, 1)
    tone[rows, cols] = tone[rows, cols] * (1 - ink) + 0.97 * ink
