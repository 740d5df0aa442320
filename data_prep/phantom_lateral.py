"""The lateral chest phantom: the same patient from the side, facing left, spine on the right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom_anatomy import Film, Patient, Study
from data_prep.phantom_frontal import LUNG_STEP, Layers, grow
from data_prep.phantom_raster import Curve, Draws, Frame, Tubes, blend_min, soft, step


@dataclass(frozen=True)
class Side:
    """Contours of one lateral chest; x is signed, forwards is negative."""

    top: float
    base: float
    front: Curve  # inner edge of the sternum, of y
    back: Curve  # posterior wall, of y
    floor: Curve  # height of the higher dome, of x
    sulcus: tuple[float, float]

    def place(self, v: float, depth: float) -> tuple[float, float]:
        """Return the position of a fractional height and depth in the lungs."""
        y = self.top + 0.05 + v * (self.base - self.top - 0.06)
        front, back = self.front.at(y), self.back.at(y)
        return front + (0.06 + 0.84 * depth) * (back - front), y


def build(who: Patient, study: Study) -> Side:
    """Work out the contours."""
    deep = 0.88 * who.width
    top, base = who.apex, who.dome + study.breath - 0.02

    def front(y: np.ndarray) -> np.ndarray:
        t = np.clip((y - top) / (base - top), 0, 1.4)
        return -deep * (0.28 + 0.62 * np.clip(t, 0, 1.2) ** 0.62) + 0.02

    def back(y: np.ndarray) -> np.ndarray:
        t = np.clip((y - top) / (base + 0.12 - top), 0, 1.1)
        return deep * (0.42 + 0.52 * np.sin(np.pi * (0.12 + 0.62 * t)) ** 1.2) + 0.01

    def floor(x: np.ndarray) -> np.ndarray:
        t = np.clip(x / deep, -1, 1)
        return base + 0.16 * np.clip(t + 0.30, 0, 2) ** 2 + 0.08 * np.clip(-t - 0.3, 0, 1) ** 2

    floor_curve, back_curve = Curve(floor, axis="x"), Curve(back, axis="y")
    x = back_curve.at(base + 0.12) - 0.015
    return Side(top, base, Curve(front, axis="y"), back_curve, floor_curve, (x, floor_curve.at(x)))


def draw(who: Patient, study: Study, film: Film, frame: Frame) -> tuple[Side, Layers]:
    """Draw the healthy chest from the side."""
    side = build(who, study)
    front, back = frame.of_y(side.front), frame.of_y(side.back)
    floor = frame.of_x(side.floor)
    over = frame.y - (side.top + 0.02 + 2.2 * (frame.x - 0.03) ** 2)
    ends = blend_min(np.minimum(frame.x - front, back - frame.x), over, 0.05)
    depth = np.minimum(ends, (floor - frame.y) * 0.85)
    lung = soft(depth, max(2 * frame.px, 0.006))
    total, body = _body(who, side, frame, front, back)
    air = 0.62 + 0.38 * (1 - np.exp(-np.clip(depth, 0, 1) / 0.08))
    total -= LUNG_STEP * 1.05 * lung * air * (0.86 + 0.2 * step((frame.y - side.top) / 0.6))
    total += _heart(who, study, side, frame, lung)
    total += _bones(who, side, frame, front, back, floor)
    below = frame.y - floor
    total += 0.08 * (1 - np.exp(-np.clip(below, 0, 1) / 0.1)) * soft(back + 0.04 - frame.x, 0.05)
    depth_wall = np.minimum(frame.x - front, back - frame.x)
    second = frame.y - floor - 0.03 - 0.10 * np.clip(frame.x + 0.1, -0.4, 0.4)
    total -= 0.07 * soft(-second, 0.006) * soft(below, 0.006) * soft(depth_wall, 0.01)
    tubes, d = Tubes(), Draws(who.tree, 1)
    hilum = (0.035, side.top + 0.30)
    for direction in (-1, 1):
        grow(d, tubes, hilum, direction, 0.75 * who.width, trunks=8)
    vessels = tubes.render(frame) * who.vessel_gain * 0.9
    spread = np.hypot((frame.x - hilum[0]) / 0.05, (frame.y - hilum[1]) / 0.06)
    total += 0.05 * np.exp(-(spread**2))
    total *= body
    ratio = np.abs(2 * (frame.x - front) / np.maximum(back - front, 0.05) - 1)
    return side, Layers(total, lung, depth, ratio, vessels * lung)


def _body(who: Patient, side: Side, frame: Frame, front, back) -> tuple[np.ndarray, np.ndarray]:
    """Trunk, raised arms, neck: attenuation and coverage."""
    skin = 0.035 + 0.5 * who.fat
    above = side.top + 0.10 - frame.y
    rise = 0.5 * (above + np.sqrt(above * above + 0.004))
    swell = (who.breast * 0.7 + 0.1 * who.fat) * np.exp(-(((frame.y - 0.56) / 0.16) ** 2))
    ahead = (frame.x - front + skin + swell + 1.0 * rise) * 0.9
    behind = back + skin + 0.035 - frame.x - 0.22 * rise
    inside = blend_min(ahead, behind, 0.05)
    body = soft(inside, 0.006)
    total = 1 - np.exp(np.clip(inside, 0, 0.5) * (-1 / 0.05))
    arms = 0.10 * step((side.top + 0.14 - frame.y) / 0.2)
    return total * (0.64 + arms), body


def _heart(who: Patient, study: Study, side: Side, frame: Frame, lung) -> np.ndarray:
    """Heart on the diaphragm behind the sternum, aortic arch, airway."""
    grown = 1 + 1.6 * (study.ctr - 0.45)
    x, y = frame.x + 0.40 * who.width, frame.y - (side.base - 0.075)
    along, across = 0.80 * x - 0.60 * y, 0.60 * x + 0.80 * y
    oval = (across / (0.185 * grown)) ** 2 + (along / (0.125 * grown)) ** 2
    thick = np.sqrt(np.clip(1 - oval, 0, 1))
    fill = soft(1.06 - oval, 0.16)
    total = (0.17 * thick + 0.07 * fill) * (0.3 + 0.7 * lung)
    fat = np.hypot((frame.x + 0.72 * who.width) / 0.10, (y - 0.06) / 0.10)
    total += 0.10 * np.exp(-(fat**2)) * lung
    ring = np.hypot(frame.x - 0.045, (frame.y - side.top - 0.22) * 0.9)
    arch = np.exp(-(((ring - 0.065) / (0.6 * who.knob)) ** 2))
    total += 0.06 * arch * (frame.y < side.top + 0.30)
    down = frame.x - 0.105 - 0.10 * (frame.y - side.top - 0.22)
    below = step((frame.y - side.top - 0.2) / 0.05) * step((side.base - frame.y) / 0.2)
    total += 0.045 * below * np.exp(-((down / 0.022) ** 2))
    pipe = soft(0.019 - np.abs(frame.x - 0.004 - 0.12 * frame.y), 0.012)
    return total - 0.09 * pipe * step((side.top + 0.27 - frame.y) / 0.04)


def _bones(who: Patient, side: Side, frame: Frame, front, back, floor) -> np.ndarray:
    """Vertebrae, sternum, ribs running forwards and down."""
    spine = frame.x - (back - 0.040)
    disc = 0.050 + 0.012 * frame.y
    phase = (frame.y + 0.16 * spine) / disc
    gap = np.abs(phase - np.round(phase))
    column = soft(0.036 - np.abs(spine), 0.008) * step((frame.y - 0.02) / 0.1)
    body = soft(0.40 - gap, 0.06)
    total = column * (0.066 * body + 0.05 * np.exp(-(((gap - 0.39) / 0.05) ** 2)))
    plate = soft(0.010 - np.abs(frame.x - front + 0.012), 0.006)
    rows = step((frame.y - side.top - 0.05) / 0.03) * step((side.base - 0.02 - frame.y) / 0.04)
    total += 0.10 * plate * rows
    width = np.maximum(back - front, 0.1)
    t = np.clip((frame.x - front) / width, -0.1, 1.1)
    for shift, strength in ((0.0, 0.050), (0.45, 0.038)):
        fall = 0.30 * np.clip(1 - t, 0, 1) ** 1.3
        rib = (frame.y - side.top - fall) / (0.105 * (side.base - side.top) / 0.6) + shift
        off = np.abs(rib - np.round(rib))
        inside = soft(np.minimum(t, 1.02 - t), 0.04) * (rib > 0.4) * step((9.4 - rib) / 0.4)
        fade = (0.35 + 0.65 * t) * (1 - 0.6 * step((frame.y - floor) / 0.04))
        total += strength * soft(0.15 - off, 0.08) * inside * fade
    lines = Tubes()
    tip = (back[0, 0] * 0 + 0.20, side.top + 0.30)
    for shift in (0.0, 0.035):
        lines.line(
            (0.10 + shift, side.top + 0.02),
            (tip[0] + shift, tip[1]),
            bend=-0.02,
            radius=0.004,
            gain=4.0,
        )
    return (total + lines.render(frame)) * np.float32(who.bones)
