"""The planted findings: each changes the layers of a film and reports the box that it fills.

Strengths are shares of the step from lung to mediastinum, so a finding's visibility does not
depend on the exposure.
"""

from __future__ import annotations

import numpy as np

from data_prep.phantom_anatomy import Planted, Study
from data_prep.phantom_frontal import LUNG_STEP, Chest, Layers
from data_prep.phantom_lateral import Side
from data_prep.phantom_raster import Draws, Frame, Tubes, soft, step

Box = tuple[float, float, float, float]


def plant(study: Study, chest: Chest | Side, layers: Layers, frame: Frame) -> dict[str, Box]:
    """Add a study's findings to a film; return a box (y0, x0, y1, x1) for each focal one."""
    boxes: dict[str, Box] = {}
    for name, finding in study.planted.items():
        extra = _DRAWN[name](finding, chest, layers, frame)
        layers.attenuation += extra
        box = _box(extra) if name in FOCAL else None
        if box:
            boxes[name] = box
    return boxes


def _box(extra: np.ndarray) -> Box | None:
    seen = np.abs(extra) > 0.3 * np.abs(extra).max()
    if not seen.any() or not np.abs(extra).max():
        return None
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    n = float(extra.shape[0])
    ends = (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1)
    return tuple(float(end) / n for end in ends)


def _centre(finding: Planted, chest: Chest | Side) -> tuple[float, float]:
    if isinstance(chest, Side):
        return chest.place(finding.v, finding.depth)
    return chest.place(finding.side, finding.v, finding.h)


def _nodule(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """A round opacity, slightly lobed, with a soft edge."""
    extra = np.zeros_like(layers.attenuation)
    x, y = _centre(finding, chest)
    win = frame.window(x, y, finding.size)
    dx, dy = frame.x[win] - x, frame.y[win] - y
    turn = np.arctan2(dy, dx)
    a, b, c = Draws(finding.shape).uniforms(3)
    radius = 0.5 * finding.size / frame.scale
    lobed = 1 + 0.06 * np.cos(2 * turn + 6.3 * a) + 0.05 * np.cos(3 * turn + 6.3 * b)
    rho = np.hypot(dx, dy) / (radius * lobed)
    dome = np.sqrt(np.clip(1 - rho**2, 0, 1))
    shape = (0.45 + 0.2 * c) * soft(1 - rho, 0.3) + (0.55 - 0.2 * c) * dome
    extra[win] = finding.contrast * LUNG_STEP * shape
    return extra


def _consolidation(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """A patch of confluent puffs with a ragged edge and open airways within."""
    extra = np.zeros_like(layers.attenuation)
    x, y = _centre(finding, chest)
    win = frame.window(x, y, 1.1 * finding.size)
    d = Draws(finding.shape)
    px, py, lung = frame.x[win], frame.y[win], layers.lung[win]
    puffs = np.zeros_like(px)
    for u, v, w in d.uniforms(16, 3):
        cx = x + finding.size * 0.40 * np.sqrt(u) * np.cos(6.283 * v)
        cy = y + finding.size * 0.40 * np.sqrt(u) * np.sin(6.283 * v)
        wide = finding.size * (0.10 + 0.14 * w)
        puffs += np.exp(-((px - cx) ** 2 + (py - cy) ** 2) / (wide * wide))
    patch = step((puffs - 0.25) / 1.1)
    airways = Tubes()
    for u in d.uniforms(3):
        angle = 0.5 + 1.4 * u
        end = (x + np.copysign(np.cos(angle), x) * finding.size * 0.45, y + 0.45 * finding.size * u)
        airways.line((x - (end[0] - x), y - (end[1] - y)), end, radius=0.0028, gain=1.0)
    extra[win] = finding.contrast * LUNG_STEP * patch * lung
    extra -= airways.render(frame) * 4.0 * extra
    return extra


def _atelectasis(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """One to three thin plates, nearly level, in the lower lung."""
    x, y = _centre(finding, chest)
    d = Draws(finding.shape)
    lines = Tubes()
    for index in range(1 + int(3 * d.uniform())):
        tilt = d.uniform(-0.45, 0.45)
        long = finding.size * (0.5 if index == 0 else d.uniform(0.25, 0.4))
        cy = y - index * d.uniform(0.014, 0.03)
        start = (x - long * np.cos(tilt), cy - long * np.sin(tilt))
        end = (x + long * np.cos(tilt), cy + long * np.sin(tilt))
        lines.line(start, end, bend=d.uniform(-0.012, 0.012), radius=0.0040, gain=1.0)
    plates = lines.render(frame)
    return plates / max(float(plates.max()), 1e-9) * finding.contrast * LUNG_STEP * layers.lung


def _edema(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """Haze around both hila, heavier vessels, short septal lines at the bases."""
    y = chest.top + 0.33
    if isinstance(chest, Side):
        spread = np.hypot((frame.x - 0.03) / 0.15, (frame.y - y) / 0.17)
    else:
        spread = np.hypot((frame.ax - 0.11) / 0.10, (frame.y - y) / 0.17)
    d = Draws(finding.shape)
    haze = np.exp(-(spread**2)) * layers.lung
    lines = Tubes()
    for side in (-1, 1):
        for u, v, w in d.uniforms(14, 3):
            if isinstance(chest, Side):
                x, cy = chest.place(0.6 + 0.35 * u, 0.05 + 0.9 * v)
            else:
                x, cy = chest.place(side, 0.66 + 0.36 * u, 0.86 + 0.1 * v)
            run = 0.012 + 0.012 * w
            lines.line((x - run, cy), (x + run, cy + 0.004), radius=0.0016, gain=9.0, points=30)
    layers.vessels *= np.float32(1 + 1.6 * finding.contrast)
    return finding.contrast * LUNG_STEP * haze + lines.render(frame) * layers.lung


def _effusion(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """Fluid that fills the costophrenic angle and climbs the wall as a meniscus."""
    if isinstance(chest, Side):
        x, y = chest.sulcus
        lean = np.clip(1 - (x - frame.x) / (0.30 + finding.size), 0, 1.1)
        level = y - finding.size * (0.30 + 0.70 * lean**2)
        strength = finding.contrast * LUNG_STEP * 0.7
        near = 1.0
    else:
        lean = np.clip((layers.ratio - 0.2) / 0.8, 0, 1.1)
        level = chest.angle_y[finding.side] - finding.size * (0.32 + 0.68 * lean**2.5)
        strength = finding.contrast * LUNG_STEP
        near = frame.x * finding.side > 0
    wet = soft(frame.y - level, 0.012 + 0.05 * finding.size) * near
    layers.vessels *= 1 - wet
    return strength * wet * layers.lung


def _pneumothorax(finding: Planted, chest, layers: Layers, frame: Frame) -> np.ndarray:
    """A strip of free air at apex and wall: a thin pleural line, no vessels outside it."""
    if isinstance(chest, Side):
        edge = np.minimum(layers.depth, 0.2)
        high = step((chest.top + 0.26 - frame.y) / 0.16)
        near = np.float32(1.0)
    else:
        near = soft(frame.x * finding.side - 0.02, 0.01)
        edge = np.minimum(layers.depth, 0.2)
        high = step((chest.top + 0.42 - frame.y) / 0.34)
        edge = np.where(frame.ax < 0.12, edge + 3 * (0.12 - frame.ax), edge)
    wide = finding.size / frame.scale * (0.25 + 0.75 * high)
    wide = wide * (high > 0.02)
    inner = edge - wide
    free = soft(-inner, 0.004) * layers.lung * near * (high > 0.02)
    line = np.exp(-((inner / 0.0022) ** 2)) * near * layers.lung * step(high / 0.15)
    layers.vessels *= 1 - free
    return 0.16 * LUNG_STEP * line - finding.contrast * LUNG_STEP * free


_DRAWN = {  # cardiomegaly is not planted: the heart itself is drawn large
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Effusion": _effusion,
    "Nodule": _nodule,
    "Pneumothorax": _pneumothorax,
}
FOCAL = frozenset(_DRAWN) - {"Edema"}
