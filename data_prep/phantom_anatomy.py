"""Who is drawn: patients, their studies and films, and the planted findings, as plain numbers.

A film's content depends on (seed, patient, film, size) only. Films come in blocks of twelve; each
block is divided among patients of one to three films, so the film's patient follows from its own
index, whatever the number of films.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from data_prep.phantom_raster import Draws

BLOCK = 12
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Nodule",
    "Pneumothorax",
)
CARDIOMEGALY_RATIO = 0.5
_GAP = 0.01  # no heart is drawn closer to the limit than this
_PATIENT, _STUDY, _FILM, _BLOCKS = range(4)


@dataclass(frozen=True)
class Nodules:
    """How nodules are planted; the defaults are those of the frozen generator."""

    share: float = 0.14
    """Share of patients who have one."""
    size: tuple[float, float] = (0.032, 0.074)
    """Range of diameters, in film widths."""
    contrast: tuple[float, float] = (0.08, 0.245)
    """Range of contrasts, as shares of the step from lung to mediastinum."""


NODULES = Nodules()


@dataclass(frozen=True)
class Planted:
    """One planted finding; side is -1 for the patient's right (left on the film), 1 for left."""

    side: int
    v: float  # 0 at the apex, 1 at the diaphragm
    h: float  # 0 at the mediastinum, 1 at the chest wall
    depth: float  # 0 at the sternum, 1 at the back
    size: float  # diameter, height or length in film widths
    contrast: float  # share of the step from lung to mediastinum
    shape: int  # key of the finding's own random stream


@dataclass(frozen=True)
class Patient:
    """Anatomy that a patient keeps from film to film (lengths in film widths)."""

    sex: str
    age: int
    width: float  # half the inner thorax
    apex: float
    dome: float
    square: float  # how fast the thorax widens below its apex
    fat: float
    ctr: float
    heart_right: float  # share of the heart's width right of the midline
    heart_round: float
    knob: float
    rib_slope: float
    rib_offset: float
    rib_wide: float
    spine: float
    shoulder: float
    breast: float
    bubble: float
    bones: float
    vessel_gain: float
    tree: int


@dataclass(frozen=True)
class Study:
    """What changes from study to study: breath, turn, and findings."""

    index: int
    views: tuple[str, ...]
    breath: float
    turn: float
    ctr: float
    planted: dict[str, Planted] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, int]:
        """Return every finding as 0 or 1, No_Finding first."""
        found = {name: int(name in self.planted) for name in FINDINGS}
        found["Cardiomegaly"] = int(self.ctr > CARDIOMEGALY_RATIO)
        return {"No_Finding": int(not any(found.values())), **found}


@dataclass(frozen=True)
class Film:
    """What belongs to one exposure."""

    view: str
    angle: float
    scale: float
    shift: tuple[float, float]
    gamma: float
    low: float
    high: float
    knee: float
    noise: float
    collimation: tuple[float, float, float, float]
    marker: str
    marker_at: tuple[float, float]
    arms: float
    grain: int


def locate(seed: int, index: int) -> tuple[int, int]:
    """Return (patient, place among the patient's films) of film `index`."""
    block, place = divmod(index, BLOCK)
    for ordinal, count in enumerate(_block_sizes(seed, block)):
        if place < count:
            return block * BLOCK + ordinal, place
        place -= count
    raise AssertionError("a block's sizes add up to the block")


@lru_cache(maxsize=64)
def _block_sizes(seed: int, block: int) -> list[int]:
    draws, sizes = Draws(seed, _BLOCKS, block), []
    while sum(sizes) < BLOCK:
        sizes.append(min(draws.pick((1, 1, 1, 2, 2, 3)), BLOCK - sum(sizes)))
    return sizes


def draw_patient(seed: int, patient: int) -> Patient:
    """Draw a patient's anatomy."""
    d = Draws(seed, _PATIENT, patient)
    sex = d.pick("FM")
    age = int(min(max(d.normal(55.0, 17.0), 18), 95))
    ctr = d.normal(0.452, 0.042)
    if abs(ctr - CARDIOMEGALY_RATIO) < _GAP:
        ctr = CARDIOMEGALY_RATIO + (_GAP if ctr > CARDIOMEGALY_RATIO else -_GAP)
    return Patient(
        sex=sex,
        age=age,
        width=d.normal(0.372 if sex == "M" else 0.355, 0.028),
        apex=d.normal(0.115, 0.016),
        dome=d.normal(0.74, 0.042),
        square=d.uniform(6.0, 10.0),
        fat=d.uniform(0.03, 0.085),
        ctr=ctr,
        heart_right=d.uniform(0.26, 0.40),
        heart_round=d.uniform(0.0, 1.0),
        knob=d.normal(0.040, 0.006) + 0.0002 * (age - 55),
        rib_slope=d.uniform(0.08, 0.17),
        rib_offset=d.uniform(-0.5, 0.5),
        rib_wide=d.uniform(0.15, 0.2),
        spine=d.uniform(0.040, 0.050),
        shoulder=d.uniform(-0.02, 0.03),
        breast=d.uniform(0.05, 0.14) if sex == "F" else d.uniform(0.0, 0.03),
        bubble=d.uniform(0.03, 0.085),
        bones=d.uniform(0.8, 1.25) - 0.003 * (age - 55),
        vessel_gain=d.uniform(0.8, 1.2),
        tree=int(d.uniform(0.0, 2.0**31)),
    )


@lru_cache(maxsize=64)
def _visits(seed: int, patient: int) -> tuple[tuple[str, ...], ...]:
    """Divide a patient's films among studies: the views of each."""
    plan = Draws(seed, _PATIENT, patient, 1)
    block, ordinal = divmod(patient, BLOCK)
    left, visits = _block_sizes(seed, block)[ordinal], []
    while left:
        pair = left >= 2 and plan.chance(0.34)
        visits.append(("PA", "LATERAL") if pair else ("AP",) if plan.chance(0.2) else ("PA",))
        left -= len(visits[-1])
    return tuple(visits)


def draw_study(
    seed: int, patient: int, place: int, *, nodules: Nodules = NODULES
) -> tuple[Study, str]:
    """Draw the study of the patient's film number `place`, and return the film's view with it."""
    index, visits = 0, _visits(seed, patient)
    while place >= len(visits[index]):
        place -= len(visits[index])
        index += 1
    who = draw_patient(seed, patient)
    d = Draws(seed, _STUDY, patient, index)
    ctr = who.ctr + (1 if who.ctr > CARDIOMEGALY_RATIO else -1) * d.uniform(0.0, 0.006)
    study = Study(
        index=index,
        views=visits[index],
        breath=d.normal(0.0, 0.018),
        turn=d.normal(0.0, 0.009),
        ctr=ctr,
        planted={**_chronic(seed, patient, nodules), **_acute(d)},
    )
    return study, visits[index][place]


def _chronic(seed: int, patient: int, nodules: Nodules) -> dict[str, Planted]:
    """Draw what stays in its place from study to study."""
    d = Draws(seed, _PATIENT, patient, 2)
    if not d.chance(nodules.share):
        return {}
    return {"Nodule": _planted(d, nodules.size, nodules.contrast)}


def _acute(d: Draws) -> dict[str, Planted]:
    """Draw what comes and goes."""
    found: dict[str, Planted] = {}
    if d.chance(0.13):
        found["Atelectasis"] = _planted(d, (0.10, 0.18), (0.22, 0.40), v=(0.72, 0.92))
    if d.chance(0.13):
        found["Consolidation"] = _planted(d, (0.10, 0.19), (0.15, 0.32), h=(0.3, 0.7))
    if d.chance(0.11):
        found["Edema"] = _planted(d, (0.16, 0.24), (0.09, 0.17))
    if d.chance(0.13):
        small = d.uniform() ** 2  # most effusions only blunt the angle
        found["Effusion"] = _planted(d, (0.05 + 0.19 * small,) * 2, (0.66, 0.82))
    if d.chance(0.12):
        found["Pneumothorax"] = _planted(d, (0.022, 0.06), (0.05, 0.12))
    return found


def _planted(d: Draws, size, contrast, *, v=(0.14, 0.86), h=(0.2, 0.8)) -> Planted:
    return Planted(
        side=d.pick((-1, 1)),
        v=d.uniform(*v),
        h=d.uniform(*h),
        depth=d.uniform(0.2, 0.85),
        size=d.uniform(*size),
        contrast=d.uniform(*contrast),
        shape=int(d.uniform(0.0, 2.0**31)),
    )


def draw_film(seed: int, patient: int, place: int, view: str) -> Film:
    """Draw one exposure; nothing here knows a finding."""
    d = Draws(seed, _FILM, patient, place)
    edges = [d.uniform(0.008, 0.045) if d.chance(0.22) else 0.0 for _ in range(4)]
    return Film(
        view=view,
        angle=d.normal(0.0, 0.02),
        scale=d.normal(0.99, 0.02, clip=2.4),
        shift=(d.normal(0.0, 0.014), d.normal(0.0, 0.02)),
        gamma=d.uniform(0.85, 1.25),
        low=d.uniform(0.0, 0.06),
        high=d.uniform(0.86, 1.0),
        knee=d.uniform(0.2, 1.2),
        noise=d.uniform(0.009, 0.014),
        collimation=(edges[0], edges[1], edges[2], edges[3]),
        marker=d.pick(("", "R", "L", "L")),
        marker_at=(d.uniform(0.05, 0.12), d.uniform(0.04, 0.09)),
        arms=d.uniform(0.30, 0.42) if view != "AP" else d.uniform(0.26, 0.36),
        grain=int(d.uniform(0.0, 2.0**31)),
    )
