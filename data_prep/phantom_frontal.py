"""The frontal chest phantom (PA, AP): attenuation of one patient, drawn in the patient's frame.

Everything is a sum of smooth layers on one pixel grid: body, lungs, heart and great vessels, spine,
ribs, clavicles, shoulders, vessels of the lungs. Ribs are level sets of one phase function and
so cost one pass for all twenty-four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom_anatomy import Film, Patient, Study
from data_prep.phantom_raster import (
    Curve,
    Draws,
    Frame,
    Tubes,
    blend_min,
    bow,
    smooth_max,
    soft,
    step,
)

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
        out = dome[-1] + (dome[1] - dome[-1]) * step(x / 0.12 + 0.5)
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
    inner = who.width * 1.026  # the widest place of the wall
    wide = 2 * inner * study.ctr
    right, left = wide * who.heart_right, wide * (1 - who.heart_right)
    right, left = right + study.turn, left - study.turn
    upper, lower = base - 0.37, base - 0.055 + 0.02 * who.heart_round

    def hump(y, centre, x, out, tall):
        return x + out * np.exp(-(np.abs((y - centre) / tall) ** 2.6) * 1.4)

    def edge(y, side):
        neck = 0.046 + 0.05 * np.exp(-np.clip(y - top, -0.02, 1) / 0.06)
        shift = side * -study.turn
        if side < 0:
            atrium = (y - (base - 0.12)) / 0.17
            bulge = right * np.sqrt(np.clip(1 - atrium**2, 0, 1))
            cava = hump(y, top + 0.20, 0.036, 0.026 + 0.2 * (who.knob - 0.04), 0.12) + shift
            return smooth_max(neck - 0.006 + shift, cava, bulge)
        arch = hump(y, top + 0.17, 0.036, who.knob, 0.055) + shift
        trunk = hump(y, top + 0.275, 0.040, 0.034, 0.085) + shift
        q = (y - upper) / (lower - upper)
        flank = np.sin(np.clip(q, 0, 1) * np.pi / 2) ** (1.25 - 0.45 * who.heart_round)
        tip = np.sqrt(np.clip(1 - ((y - lower) / 0.10) ** 2, 0, 1))
        ventricle = left * np.where(q < 1, flank, tip)
        return smooth_max(neck + shift, arch, trunk, ventricle, k=130.0)

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
    over = frame.y - frame.of_ax(Curve(lambda x: chest.top + 2.2 * (abs(x) - 0.16) ** 2, axis="x"))
    under = (floor - frame.y) * 0.8
    upper = blend_min(blend_min(over, frame.ax - medial, 0.022), wall - frame.ax, 0.03)
    depth = np.minimum(upper, under)
    lung = soft(depth, max(1.8 * frame.px, 0.0045))
    ratio = frame.ax / np.maximum(wall, 0.06)

    total, body = _body(who, chest, film, frame)
    total -= LUNG_STEP * lung * (0.72 + 0.28 * (1 - np.exp(np.minimum(depth, 0.3) * (-1 / 0.05))))
    _middle(who, study, chest, frame, total)
    _heart(who, chest, frame, medial, total)
    _abdomen(who, chest, frame, floor, total)
    total += _ribs(who, chest, frame, wall, ratio, floor)
    _girdle(who, chest, film, frame, total)
    total *= body
    tubes = Tubes()
    hila = tree(who, chest, tubes)
    vessels = tubes.render(frame) * np.float32(who.vessel_gain)
    near = Curve(lambda y: 0.4 * step((0.12 - abs(y - hila)) / 0.06), axis="y")
    return chest, Layers(total, lung, depth, ratio, vessels * np.maximum(lung, frame.of_y(near)))


def _body(who: Patient, chest: Chest, film: Film, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Return the attenuation and the coverage of trunk, neck, shoulders and arms."""
    armpit = chest.top + film.arms - 0.05

    def side(y: np.ndarray) -> np.ndarray:
        trunk = 1.02 * who.width + who.fat + 0.012 - 0.03 * step((y - 0.5) / 0.4)
        return trunk + 0.5 / (1 + np.exp(np.clip((y - armpit) / 0.022, -30, 30)))

    def shoulder(x: np.ndarray) -> np.ndarray:
        neck = 0.115 + 0.6 * who.fat
        slope = chest.top - 0.075 + who.shoulder + 0.20 * (np.abs(x) - neck)
        return slope - 0.22 * np.exp(-np.clip(np.abs(x) - neck + 0.02, 0, 1) / 0.045)

    inside = np.minimum(
        frame.of_y(Curve(side, axis="y")) - frame.ax,
        (frame.y - frame.of_ax(Curve(shoulder, axis="x"))) * 0.9,
    )
    body = soft(inside, 0.004)
    total = 1 - np.exp(np.clip(inside, 0, 0.4) * (-1 / (0.028 + 0.10 * who.fat)))
    arm = Curve(lambda y: 0.12 * step((armpit + 0.05 - y) / 0.3), axis="y")
    far = Curve(lambda x: step((np.abs(x) - who.width - 0.03) / 0.12), axis="x")
    total *= 0.66 - frame.of_y(arm) * frame.of_ax(far)
    if who.breast > 0.03:
        part = frame.crop((0.25, 0.82))
        across = (part.ax - 0.56 * who.width) / (0.5 * who.width)
        along = (part.y - 0.60) / 0.17
        fold = across**2 + np.where(along > 0, along, 0.6 * along) ** 2
        total[part.at] += who.breast * np.sqrt(np.clip(1 - fold, 0, 1))
    return total, body


def _heart(who: Patient, chest: Chest, frame: Frame, medial, total: np.ndarray) -> None:
    """Heart and great vessels: round in depth, so thinner towards their edges."""
    part = frame.crop((-0.2, chest.heart_y[1] + 0.2), (0.5 - 0.3, 0.5 + 0.4))
    deep = medial[part.at] - part.ax
    within = soft(deep, max(1.8 * frame.px, 0.0045))
    upper = chest.heart_y[0]
    lower = chest.heart_y[1]
    ends = Curve(
        lambda y: step((y - chest.top + 0.02) / 0.12) * step((lower + 0.2 - y) / 0.15), axis="y"
    )
    thick = Curve(lambda y: 0.09 + 0.06 * step((y - upper + 0.05) / 0.15), axis="y")
    round_ = 1 - np.exp(np.clip(deep, 0, 1) * (-1 / 0.035))
    total[part.at] += within * part.of_y(ends) * (part.of_y(thick) * round_ - 0.035)


def _middle(who, study, chest: Chest, frame: Frame, total: np.ndarray) -> None:
    """Spine, aorta behind the heart, airway."""
    part = frame.crop((-0.2, 1.2), (0.5 - 0.13, 0.5 + 0.13))
    x, y = part.x - study.turn, part.y
    ax = np.abs(x)
    disc = 0.052 + 0.010 * y
    phase = (y - 0.01) / disc
    gap = np.abs(phase - np.round(phase))
    column = soft(who.spine - ax, 0.014)
    plate = np.clip(1 - np.abs(gap - 0.40) / 0.07, 0, 1)
    rise = part.of_y(Curve(lambda y: 0.035 + 0.035 * step((y - 0.3) / 0.5), axis="y"))
    extra = column * (rise + 0.022 * plate - 0.020 * (gap > 0.44))
    pedicle = ((ax - 0.68 * who.spine) / 0.0075) ** 2 + ((gap - 0.12) * disc / 0.011) ** 2
    extra += 0.024 * np.exp(np.minimum((pedicle - 1) ** 2, 20) * -2.0)
    spinous = (x / 0.006) ** 2 + ((gap - 0.25) * disc / 0.010) ** 2
    extra += 0.028 * np.exp(-np.minimum(spinous, 20))
    extra *= who.bones
    arch = chest.top + 0.17
    along = Curve(lambda y: 0.03 * step((y - arch) / 0.05) * step((0.8 - y) / 0.2), axis="y")
    extra += part.of_y(along) * soft(0.062 - 0.02 * (y - arch) - x, 0.006) * (x > 0)
    carina = chest.top + 0.235
    pipe = Curve(lambda y: 0.075 * step((carina - y) / 0.03) * step((y + 0.05) / 0.2), axis="y")
    bend = Curve(lambda y: 0.004 + 0.03 * np.clip(y - 0.2, 0, 1), axis="y")
    extra -= part.of_y(pipe) * soft(0.0195 - np.abs(x + part.of_y(bend)), 0.012)
    run = y - carina + 0.012
    gate = Curve(
        lambda y: step((y - carina + 0.012) / 0.02) * step((carina + 0.073 - y) / 0.03), axis="y"
    )
    branches = soft(0.0115 - np.abs(-x - 0.85 * run) * 0.75, 0.012)
    branches += soft(0.0115 - np.abs(x - 1.25 * run) * 0.75, 0.012)
    total[part.at] += extra - 0.04 * branches * part.of_y(gate)


def _abdomen(who: Patient, chest: Chest, frame: Frame, floor, total: np.ndarray) -> None:
    """Denser below the domes, with the stomach's air under the left one."""
    part = frame.crop((chest.dome[-1] - 0.02, 1.2))
    below = part.y - floor[part.at]
    under = np.clip(below, 0, 1)
    extra = 0.09 - 0.09 * np.exp(under * (-1 / 0.09))
    extra -= 0.06 * np.exp(under * (-1 / 0.03)) * (below > 0)
    x = (part.x - 0.52 * who.width) / who.bubble
    y = (part.y - chest.dome[1] - 0.022 - 0.5 * who.bubble) / (0.45 * who.bubble)
    bubble = x**2 + y**2 + 0.25 * x * y
    extra -= 0.15 * soft(1 - bubble, 0.35) * step(below / 0.012)
    total[part.at] += extra


def _ribs(who: Patient, chest: Chest, frame: Frame, wall, ratio, floor) -> np.ndarray:
    """Posterior ribs that fall to the side, anterior ribs that fall to the middle, the wall."""
    r = np.minimum(ratio, 1.12)
    r2 = r * r
    r6 = r2 * r2 * r2
    gap = (chest.dome[-1] - chest.top) / 8.6
    fall = frame.of_y(Curve(lambda y: who.rib_slope * (0.6 + 0.8 * y) / gap, axis="y"))
    level = frame.of_y(
        Curve(lambda y: (y - chest.top - 0.004) / gap + 0.25 + 0.25 * who.rib_offset, axis="y")
    )
    phase = level - fall * (r - 0.18) ** 2 - (0.05 / gap) * r6 * r6
    off = np.abs(phase - np.round(phase))
    edge = max(1.5 * frame.px / gap, 0.06)
    rim = np.clip(1 - np.abs(off - (who.rib_wide - 0.03)) * (1 / 0.06), 0, 1)
    cage = soft(1.0 - ratio, 0.02) * (phase > 0.45) * np.clip((11.4 - phase) * 3, 0, 1)
    cage *= 1 - 0.7 * np.clip((frame.y - floor) * (1 / 0.03), 0, 1)
    cage *= np.clip(0.3 + (r - 0.10) * 6, 0.3, 1)
    total = 0.055 * soft(who.rib_wide - off, edge) + 0.036 * rim
    lead = (chest.top + 0.07) / gap - (chest.top + 0.004) / gap - 0.15
    front = level - lead - ((0.186 / gap) * (1 - r) + (0.031 / gap) * (1 - r2))
    off = np.abs(front - np.round(front))
    fade = np.clip((r - 0.38) * 4, 0, 1) * (front > 0.5) * np.clip((7.4 - front) * 3, 0, 1)
    total += 0.036 * fade * soft(who.rib_wide + 0.03 - off, edge * 1.3)
    total *= cage
    rows = Curve(
        lambda y: (y > chest.top) * step((chest.dome[-1] + 0.16 - y) / 0.05) * who.bones, axis="y"
    )
    rim = np.exp(-np.minimum(((frame.ax - wall - 0.006) * (1 / 0.006)) ** 2, 20))
    rim *= 0.05 + 0.035 * np.clip(1 - 2 * np.abs(off - 0.25) * 4, -1, 1)
    return total * who.bones + frame.of_y(rows) * rim


def _girdle(who: Patient, chest: Chest, film: Film, frame: Frame, total: np.ndarray) -> None:
    """Clavicles, shoulder blades, heads of the humerus."""
    lift = 0.02 if film.view == "AP" else 0.0
    inner = chest.top + 0.085 - lift + who.shoulder * 0.5
    part = frame.crop((-0.2, chest.top + 0.42))

    def clavicle(x: np.ndarray) -> np.ndarray:
        t = np.clip((np.abs(x) - 0.035) / 0.37, 0, 1.2)
        return inner - 0.085 * t**0.75 - 0.014 * np.sin(2 * np.pi * np.clip(t, 0, 1))

    from_axis = np.abs(part.y - part.of_ax(Curve(clavicle, axis="x")))
    half = 0.0125 - 0.008 * part.ax
    along = part.of_ax(
        Curve(lambda x: soft(np.abs(x) - 0.037, 0.012) * soft(0.43 - np.abs(x), 0.02), axis="x")
    )
    rim = np.exp(-np.minimum(((half - from_axis) * (1 / 0.003)) ** 2, 20))
    extra = along * (0.075 * soft(half - from_axis, 0.005) + 0.035 * rim)
    arm_x, arm_y = 0.475, chest.top + 0.035 + who.shoulder
    ball = np.sqrt((part.ax - arm_x) ** 2 + (part.y - arm_y) ** 2)
    axis = np.abs(part.ax - arm_x - 0.02 - 0.35 * (part.y - arm_y))
    shaft = soft(0.028 - axis, 0.008) * step((part.y - arm_y) / 0.05)
    extra += 0.09 * np.maximum(soft(0.052 - ball, 0.008), shaft)
    extra += 0.04 * np.exp(-np.minimum(((ball - 0.050) * 200) ** 2, 20))
    out = who.width + (0.015 if film.view == "PA" else -0.03)
    low = chest.top + 0.34
    across = (low - part.y) / 0.255
    inside = step(across / 0.1) * step((1.15 - across) / 0.15)
    for where, bend, high in ((0.425 - out + 0.03, 0.02, 0.05), (-0.065, -0.02, 0.03)):
        line = out - 0.03 + where * across + bend * 4 * across * (1 - across)
        extra += high * inside * np.exp(-np.minimum(((part.ax - line) * 170) ** 2, 20))
    total[part.at] += extra * who.bones


# first branches of a pulmonary artery: angle below the horizontal, length, radius
_ARTERIES = ((1.2, 0.13, 0.0085), (0.75, 0.09, 0.006), (-1.1, 0.08, 0.006))


def tree(who: Patient, chest: Chest, tubes: Tubes) -> float:
    """Add the arteries and veins of both lungs, branching and tapering; return the hila's y."""
    d = Draws(who.tree)
    hilum = chest.top + 0.30
    reach = 0.5 * (who.width - 0.07) + 0.35 * (chest.dome[-1] - chest.top) / 2
    for side in (-1, 1):
        y = hilum - 0.010 * side
        x = side * (chest.medial[side].at(y) + 0.012)
        grow(d, tubes, (x, y), side, reach)
        for angle, length, radius in (
            (1.2, 0.13, 0.0085),
            (0.75, 0.09, 0.006),
            (-1.1, 0.08, 0.006),
        ):
            angle = angle + 0.12 * d.normal()
            end = (x + side * length * np.cos(angle), y + length * np.sin(angle))
            taper = radius * np.linspace(1.0, 0.6, 80)
            cx, cy = bow((x - side * 0.01, y - 0.02 * np.sign(angle)), end, -0.01 * side, 80)
            tubes.add(cx, cy, taper, length / 80, 6.0)
        for u, v, w in d.uniforms(7, 3):
            cx, cy = x + side * 0.030 * u, y + 0.045 * (v - 0.45)
            tubes.add([cx], [cy], 0.006 + 0.004 * w, 0.010, 5.0)
    return hilum


def grow(d: Draws, tubes: Tubes, root, side: int, reach: float, *, trunks: int = 11) -> None:
    """Grow trunks from a hilum, each splitting in two five times; all segments at once."""
    angle = np.linspace(-1.35, 1.45, trunks) + 0.16 * d.normals(trunks)
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
        tubes.add(x + dx, y + dy, taper, length / 26, 10.0)
        x, y, angle = x + dx[-1], y + dy[-1], turn[-1]
        spread = (0.28 + 0.25 * d.uniforms(len(x))) * (1.0 + 0.08 * level)
        angle = np.concatenate([angle - spread, angle + spread * 0.8])
        x, y = np.tile(x, 2), np.tile(y, 2)
        radius = np.tile(radius, 2) * (0.70 + 0.12 * d.uniforms(len(x)))
        length = np.tile(length, 2) * (0.70 + 0.25 * d.uniforms(len(x)))
