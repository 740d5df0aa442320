"""Pictures that a lung model is to find nothing in: slices of a CT, masks, textures.

Drawn from random numbers and the lungs of phantoms; every value lies in [0, 1].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Picture = Float[np.ndarray, "s s"]


def draw(index: int, lungs: Bool[np.ndarray, "s s"]) -> tuple[str, Picture]:
    """Draw picture `index` of the series; return its kind with it."""
    rng = np.random.default_rng((13, index))
    kind = ("axial", "coronal", "coronal", "axial", "mask", "texture")[index % 6]
    if kind == "axial":
        return kind, axial_slice(rng, len(lungs))
    if kind == "coronal":
        return kind, coronal_slice(rng, lungs)
    if kind == "mask":
        return kind, lungs.astype(np.float64)
    picture = ndimage.gaussian_filter(rng.normal(size=lungs.shape), rng.uniform(1, 20))
    return kind, (picture - picture.min()) / np.ptp(picture)


def _finish(rng: np.random.Generator, picture: Picture) -> Picture:
    picture = ndimage.gaussian_filter(picture, rng.uniform(0.5, 1.5))
    return np.clip(picture + rng.uniform(0, 0.05) * rng.normal(size=picture.shape), 0, 1)


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> Picture:
    """Draw bright spots and streaks."""
    width = rng.uniform(1.2, 2.5)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), (width, width * rng.uniform(1, 2.5)))
    return np.clip(noise / noise.std() - rng.uniform(1.0, 1.8), 0, 1)


def axial_slice(rng: np.random.Generator, side: int) -> Picture:
    """Draw what axial slices of the chest have in common."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x, y = x / rng.uniform(0.75, 1.05), y / rng.uniform(0.55, 0.85) + rng.uniform(-0.1, 0.1)

    def oval(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1

    soft, air = rng.uniform(0.45, 0.95), rng.uniform(0.0, 0.35)
    bone = min(soft + rng.uniform(0.05, 0.4), 1.0)
    picture = np.where(oval(0, 0, 1, 1), soft, rng.uniform(0, 0.1))
    picture[oval(0, 0, 1, 1) & ~oval(0, 0, 0.93, 0.92)] = soft * rng.uniform(0.5, 1.0)
    wide, tall = rng.uniform(0.33, 0.4), rng.uniform(0.55, 0.72)
    for side_ in (-1, 1):
        lung = oval(side_ * 0.45, rng.uniform(-0.1, 0.1), wide, tall) & ~oval(0.1, -0.15, 0.3, 0.4)
        picture[lung] = (air + 0.5 * _vessels(rng, x.shape))[lung]
    picture[oval(0, 0.62, 0.13, 0.17)] = bone
    picture[oval(0, -0.86, 0.12, 0.05)] = bone
    return _finish(rng, picture)


def coronal_slice(rng: np.random.Generator, lungs: Bool[np.ndarray, "s s"]) -> Picture:
    """Draw what coronal slices have in common: even air with vessels, ribs cut across."""
    y, x = np.mgrid[0 : len(lungs), 0 : len(lungs)]
    soft, air = rng.uniform(0.5, 0.95), rng.uniform(0.0, 0.3)
    bone = min(soft + rng.uniform(0.05, 0.4), 1.0)
    outwards = np.asarray(ndimage.distance_transform_edt(~lungs))
    picture = np.full(lungs.shape, soft)
    if rng.uniform() < 0.5:  # the skin, and air around it
        picture[outwards > rng.uniform(25, 70)] = rng.uniform(0, 0.1)
    level = (y + rng.uniform(0, 40)) % rng.uniform(25, 40)
    columns = np.flatnonzero(lungs.any(axis=0))
    beside = (x < columns[0] + 0.25 * np.ptp(columns)) | (x > columns[-1] - 0.25 * np.ptp(columns))
    picture[(outwards > 4) & (outwards < 13) & (level < 12) & beside] = bone
    middle = np.abs(x - columns.mean() - rng.uniform(-8, 8))
    spine = (middle < rng.uniform(8, 18)) & ~lungs
    picture[spine & (y % rng.uniform(18, 26) > 4)] = bone * rng.uniform(0.9, 1.0)
    picture[lungs] = (air + rng.uniform(0.3, 0.7) * _vessels(rng, lungs.shape))[lungs]
    return _finish(rng, picture)
