"""The frontal chest phantom (PA, AP): attenuation of one patient, drawn in the patient's frame.

Everything is a sum of smooth layers on one pixel grid: body, lungs, heart and great vessels, spine,
ribs, clavicles, shoulders, vessels of the lungs. Ribs are level sets of one phase function and
so cost one pass for all twenty-four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom_anatomy import Film, Patient, Study
from data_prep.phantom_raster import Curve, Draws, Frame, Tubes, smooth_max, soft, step

LUNG_STEP = 0.40  # attenuation that the air of a lung takes away, against the mediastinum


@dataclass(frozen=True)
class Chest:
    """Contours of one frontal chest; x is measured outwards from the midline on each side."""

    top: float
    dome: dict[int, float]  # height of each dome; -1 is the patient's right
    wall: Curve  # half-width of the inner thorax, of y
    medial: dict[int, Curve]  # edge of mediastinum and heart, of y
    floor: Curve  # height of the diaphragm, of signed x
    angle_y: dict[int, float]  # height of the costophrenic angle
    heart_y: tuple[float, float]

    def place(self, side: int, v: float, h: float) -> tuple[float, float]:
        """Return the patient position of a fractional place in a lung."""
        y = self.top + 0.02 + v * (self.dome[side] - self.top - 0.02)
        inner, outer = self.medial[side].at(y), self.wall.at(y)
        return side * (inner + h * (outer - inner)), y


def build(who: Patient, study: Study, film: Film) -> Chest:
    """Work out the contours."""
    supine = 0.03 if film.view == "AP" else 0.0
    top = who.apex
    base = who.dome + study.breath - supine
    dome = {-1: base, 1: base + 0.022}

    def wall(y: np.ndarray) -> np.ndarray:
        t = np.clip((y - top) / (base + 0.1 - top), 0, 1)
        rise = np.sqrt(np.clip(1 - (1 - t) ** who.square, 0, 1))
        return who.width * (rise + 0.03 * t - 0.10 * np.clip(y - base - 0.02, 0, 1))

    def floor(x: np.ndarray) -> np.ndarray:
        u = np.abs(x) / who.width
        out = np.where(x < 0, dome[-1], dome[1])
        return (
            out
            + 0.105 * np.clip((u - 0.42) / 0.55, 0, 2) ** 2.2
            + 0.05 * (np.clip(0.42 - u, 0, 1) ** 2)
        )

    medial, heart_y = _medial(who, study, top, base)
    floor_curve = Curve(floor, axis="x")
    wall_curve = Curve(wall, axis="y")
    angle_y = {s: floor_curve.at(s * 0.97 * who.width) for s in (-1, 1)}
    return Chest(top, dome, wall_curve, medial, floor_curve, angle_y, heart_y)


def _medial(who: Patient, study: Study, top: float, base: float):
    """Contours of the mediastinum: vena cava and atrium right; knob, trunk, ventricle left."""
    inner = who.width * 1.02
    wide = 2 * inner * study.ctr
    right, left = wide * who.heart_right, wide * (1 - who.heart_right)
    right, left = right + study.turn, left - study.turn
    upper, lower = base - 0.37, base - 0.055 + 0.02 * who.heart_round

    def hump(y, centre, x, radius):
        return (
            x
            + np.sqrt(np.clip(radius**2 - (y - centre) ** 2, 0, None))
            - 0.6 * radius * (np.abs(y - centre) >= radius)
        )

    def edge(y, side):
        neck = 0.046 + 0.055 * np.exp(-np.clip(y - top, -0.06, 1) / 0.035)
        shift = side * -study.turn
        if side < 0:
            atrium = (y - (base - 0.12)) / 0.17
            bulge = right * np.sqrt(np.clip(1 - atrium**2, 0, 1))
            cava = 0.062 * step((y - top - 0.04) / 0.05) - 0.02 * step((y - base + 0.2) / 0.1)
            return smooth_max(neck + shift, cava + shift, bulge)
        arch = hump(y, top + 0.17, 0.040, who.knob) + shift
        trunk = hump(y, top + 0.265, 0.028, 0.058) + shift
        q = (y - upper) / (lower - upper)
        flank = np.sin(np.clip(q, 0, 1) * np.pi / 2) ** (1.25 - 0.45 * who.heart_round)
        tip = np.sqrt(np.clip(1 - ((y - lower) / 0.10) ** 2, 0, 1))
        ventricle = left * np.where(q < 1, flank, tip)
        return smooth_max(neck + shift, arch, trunk, ventricle)

    curves = {s: Curve(lambda y, s=s: edge(y, s), axis="y") for s in (-1, 1)}
    return curves, (upper, lower)


@dataclass
class Layers:
    """Rasters of one frontal film that findings read and change."""

    attenuation: np.ndarray
    lung: np.ndarray  # coverage of the two lung fields, 0 to 1
    depth: np.ndarray  # distance into the lung field, negative outside
    ratio: np.ndarray  # |x| over the thorax's half-width
    vessels: np.ndarray


def draw(who: Patient, study: Study, film: Film, frame: Frame) -> tuple[Chest, Layers]:
    """Draw the healthy chest."""
    chest = build(who, study, film)
    wall = frame.of_y(chest.wall)
    medial = np.where(frame.x < 0, frame.of_y(chest.medial[-1]), frame.of_y(chest.medial[1]))
    floor = frame.of_x(chest.floor)
    over = frame.y - (chest.top + 1.6 * (frame.ax - 0.17) ** 2)
    under = (floor - frame.y) * np.float32(0.8)
    depth = np.minimum(np.minimum(wall - frame.ax, frame.ax - medial), np.minimum(over, under))
    lung = soft(depth, max(1.6 * frame.px, 0.004))
    ratio = frame.ax / np.maximum(wall, 0.06)

    total = _body(who, chest, film, frame)
    total -= LUNG_STEP * lung * (0.74 + 0.26 * (1 - np.exp(-np.clip(depth, 0, 1) / 0.05)))
    total += _middle(who, study, chest, frame, medial, depth)
    total += _abdomen(who, chest, frame, floor)
    total += _ribs(who, chest, frame, wall, ratio, floor)
    total += _girdle(who, chest, film, frame)
    tubes = Tubes()
    hila = tree(who, chest, tubes)
    vessels = tubes.render(frame) * who.vessel_gain
    inside = np.maximum(lung, 0.35 * soft(0.09 - np.abs(frame.y - hila), 0.05))
    return chest, Layers(total, lung, depth, ratio, vessels * inside)


def _body(who: Patient, chest: Chest, film: Film, frame: Frame) -> np.ndarray:
    """Soft tissue: trunk, neck, shoulders, arms."""
    armpit = chest.top + film.arms - 0.05

    def side(y: np.ndarray) -> np.ndarray:
        trunk = who.width + who.fat + 0.02 - 0.03 * step((y - 0.5) / 0.4)
        return trunk + 0.5 / (1 + np.exp(np.clip((y - armpit) / 0.022, -30, 30)))

    def shoulder(x: np.ndarray) -> np.ndarray:
        neck = 0.125 + 0.6 * who.fat
        slope = chest.top - 0.075 + who.shoulder + 0.16 * (np.abs(x) - neck)
        return slope - 0.16 * np.exp(-np.clip(np.abs(x) - neck + 0.02, 0, 1) / 0.03)

    inside = np.minimum(
        frame.of_y(Curve(side, axis="y")) - frame.ax,
        (frame.y - frame.of_ax(Curve(shoulder, axis="x"))) * np.float32(0.9),
    )
    thick = 1 - np.exp(-np.clip(inside, 0, 1) / np.float32(0.05 + 0.3 * who.fat))
    total = 0.70 * thick * soft(inside, 0.004)
    if who.breast > 0.03:
        for s in (-1, 1):
            across = (frame.x - s * 0.56 * who.width) / (0.5 * who.width)
            along = (frame.y - 0.60) / 0.17
            fold = across**2 + np.where(along > 0, along, 0.6 * along) ** 2
            total += who.breast * np.sqrt(np.clip(1 - fold, 0, 1))
    return total


def _middle(who, study, chest: Chest, frame: Frame, medial, depth) -> np.ndarray:
    """Heart, great vessels, spine and airway, as they overlap in the middle."""
    upper, lower = chest.heart_y
    within = soft(medial - frame.ax, max(1.6 * frame.px, 0.004))
    heart = within * step((frame.y - upper) / 0.10) * step((frame.ax - 0.02) / 0.08)
    total = 0.05 * within - 0.07 * heart * np.float32(1) * step((frame.ax - 0.04) / 0.12)
    x = frame.x - np.float32(study.turn)
    ax = np.abs(x)
    disc = 0.052 + 0.010 * frame.y
    phase = (frame.y - np.float32(0.01)) / disc
    gap = np.abs(phase - np.round(phase))
    column = soft(np.float32(who.spine) - ax, 0.012)
    plate = np.clip(1 - np.abs(gap - 0.40) / 0.07, 0, 1)
    total += who.bones * column * (0.055 + 0.030 * plate - 0.025 * (gap > 0.44))
    pedicle = ((ax - 0.7 * who.spine) / 0.0075) ** 2 + ((gap - 0.12) * disc / 0.011) ** 2
    total += who.bones * 0.030 * np.exp(-((pedicle - 1) ** 2) / 0.5) * (pedicle < 3)
    spinous = (x / 0.006) ** 2 + ((gap - 0.25) * disc / 0.010) ** 2
    total += who.bones * 0.035 * np.exp(-spinous)
    carina = chest.top + 0.235
    windpipe = soft(0.0205 - np.abs(x + 0.004 + 0.03 * np.clip(frame.y - 0.2, 0, 1)), 0.010)
    total -= 0.085 * windpipe * step((carina - frame.y) / 0.03)
    run = frame.y - carina + 0.012
    for s, slope in ((-1, 0.85), (1, 1.25)):
        branch = soft(0.0125 - np.abs(s * x - slope * run) * 0.75, 0.012)
        total -= 0.045 * branch * step(run / 0.02) * step((0.085 - run) / 0.03)
    return total


def _abdomen(who: Patient, chest: Chest, frame: Frame, floor) -> np.ndarray:
    """Denser below the domes, with the stomach's air under the left one."""
    below = frame.y - floor
    total = 0.10 * (1 - np.exp(-np.clip(below, 0, 1) / 0.09))
    total -= 0.05 * np.exp(-np.clip(below, 0, 1) / 0.03) * (below > 0)
    x = (frame.x - 0.52 * who.width) / 0.075
    y = (frame.y - chest.dome[1] - 0.062) / 0.034
    bubble = x**2 + y**2 + 0.25 * x * y
    return total - 0.17 * soft(1 - bubble, 0.35) * step(below / 0.012)


def _ribs(who: Patient, chest: Chest, frame: Frame, wall, ratio, floor) -> np.ndarray:
    """Posterior ribs that fall to the side, anterior ribs that fall to the middle, the wall."""
    r = np.clip(ratio, 0, 1.12)
    r2 = r * r
    r12 = r2**6
    gap = np.float32((chest.dome[-1] - chest.top) / 8.6)
    fall = np.float32(who.rib_slope) * (0.6 + 0.8 * frame.y)
    phase = (frame.y - chest.top - 0.004 - fall * (r - 0.18) ** 2 - 0.05 * r12) / gap
    phase += np.float32(0.25 + 0.25 * who.rib_offset)
    off = np.abs(phase - np.round(phase))
    edge = max(1.5 * frame.px / gap, 0.05)
    rib = soft(np.float32(who.rib_wide) - off, edge)
    rim = np.clip(1 - np.abs(off - (who.rib_wide - 0.03)) / 0.055, 0, 1)
    cage = soft(1.0 - ratio, 0.02) * (phase > 0.45) * step((11.4 - phase) / 0.3)
    deep = 1 - 0.7 * step((frame.y - floor) / 0.03)
    cage = cage * deep * (0.35 + 0.65 * step((r - 0.12) / 0.12))
    total = cage * (0.058 * rib + 0.040 * rim)
    front = (frame.y - chest.top - 0.07 - (0.30 * (1 - r) + 0.05 * (1 - r2)) * 0.62) / gap
    front = front + np.float32(0.25 * who.rib_offset + 0.4)
    off = np.abs(front - np.round(front))
    rib = soft(np.float32(who.rib_wide + 0.03) - off, edge * 1.3)
    fade = step((r - 0.38) / 0.25) * (front > 0.5) * step((7.4 - front) / 0.3)
    total += fade * cage * 0.036 * rib
    rim = np.exp(-(((frame.ax - wall - 0.006) / 0.006) ** 2))
    rows = (frame.y > chest.top) * step((chest.dome[-1] + 0.16 - frame.y) / 0.05)
    total += rows * rim * (0.05 + 0.035 * np.cos(2 * np.pi * phase))
    return total * np.float32(who.bones)


def _girdle(who: Patient, chest: Chest, film: Film, frame: Frame) -> np.ndarray:
    """Clavicles, shoulder blades, heads of the humerus."""
    lift = 0.02 if film.view == "AP" else 0.0
    inner = chest.top + 0.085 - lift + who.shoulder * 0.5

    def clavicle(x: np.ndarray) -> np.ndarray:
        t = np.clip((np.abs(x) - 0.035) / 0.37, 0, 1.2)
        return inner - 0.085 * t**0.75 - 0.014 * np.sin(2 * np.pi * np.clip(t, 0, 1))

    from_axis = np.abs(frame.y - frame.of_ax(Curve(clavicle, axis="x")))
    half = 0.0125 - 0.008 * frame.ax
    along = soft(frame.ax - 0.037, 0.012) * soft(0.43 - frame.ax, 0.02)
    bone = soft(half - from_axis, 0.005)
    total = along * (0.075 * bone + 0.035 * np.exp(-(((half - from_axis) / 0.003) ** 2)))
    arm_x, arm_y = 0.475, chest.top + 0.035 + who.shoulder
    ball = np.sqrt((frame.ax - arm_x) ** 2 + (frame.y - arm_y) ** 2)
    head = soft(0.052 - ball, 0.006)
    axis = np.abs(frame.ax - arm_x - 0.02 - 0.35 * (frame.y - arm_y))
    shaft = soft(0.028 - axis, 0.006) * (frame.y > arm_y)
    total += 0.10 * np.maximum(head, shaft)
    lines = Tubes()
    out = who.width + (0.015 if film.view == "PA" else -0.03)
    for s in (-1, 1):
        tip = (s * (out - 0.03), chest.top + 0.34)
        lines.line((s * 0.425, chest.top + 0.085), tip, bend=s * -0.02, radius=0.006, gain=6.0)
        lines.line(
            (s * (out - 0.095), chest.top + 0.03), tip, bend=s * 0.02, radius=0.003, gain=5.0
        )
    return (total + lines.render(frame)) * np.float32(who.bones)


def tree(who: Patient, chest: Chest, tubes: Tubes) -> float:
    """Add the arteries and veins of both lungs, branching and tapering; return the hila's y."""
    d = Draws(who.tree)
    hilum = chest.top + 0.30
    reach = 0.5 * (who.width - 0.07) + 0.35 * (chest.dome[-1] - chest.top) / 2
    for side in (-1, 1):
        root = chest.medial[side].at(hilum - 0.02 * side)
        grow(d, tubes, (side * (root * 0.6 + 0.03), hilum - 0.008 * side), side, reach)
    return hilum


def grow(d: Draws, tubes: Tubes, root, side: int, reach: float, *, trunks: int = 11) -> None:
    """Grow trunks from a hilum, each splitting in two five times; all segments at once."""
    angle = np.linspace(-1.35, 1.45, trunks) + 0.12 * d.normals(trunks)
    x = root[0] + side * 0.012 * np.cos(angle)
    y = root[1] + 0.055 * np.sin(angle)
    radius = 0.0062 * (0.7 + 0.5 * d.uniforms(trunks))
    length = np.full(trunks, 0.30 * reach) * (0.7 + 0.5 * d.uniforms(trunks))
    t = (np.arange(26) + 0.5)[:, None] / 26
    for level in range(6):
        bend = 0.22 * d.normals(len(x))
        turn = angle + bend * (t - 0.5) * 2
        dx = np.cumsum(np.cos(turn), 0) * length / 26 * side
        dy = np.cumsum(np.sin(turn), 0) * length / 26
        taper = radius * (1 - 0.25 * t)
        tubes.add(x + dx, y + dy, taper, np.broadcast_to(length / 26, t.shape[:1] + x.shape), 2.4)
        x, y, angle = x + dx[-1], y + dy[-1], turn[-1]
        spread = (0.28 + 0.25 * d.uniforms(len(x))) * (1.0 + 0.08 * level)
        angle = np.concatenate([angle - spread, angle + spread * 0.8])
        x, y = np.tile(x, 2), np.tile(y, 2)
        radius = np.tile(radius, 2) * (0.70 + 0.12 * d.uniforms(len(x)))
        length = np.tile(length, 2) * (0.70 + 0.25 * d.uniforms(len(x)))
