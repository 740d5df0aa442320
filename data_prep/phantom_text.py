"""Findings and impression of a phantom study, written from the numbers of its draw."""

from __future__ import annotations

from data_prep.phantom_anatomy import CARDIOMEGALY_RATIO, Planted, Study
from data_prep.phantom_raster import FILM_MM, Draws
from data_prep.phantom_templates import ABSENT, NORMAL, NORMAL_HEART, PRESENT

_SIDE = {-1: "right", 1: "left"}
_TRACE = 0.075  # film widths: an effusion below that only blunts the angle
_VERDICTS = {
    "Atelectasis": "{side} basal atelectasis.",
    "Consolidation": "{side} {zone} zone consolidation.",
    "Edema": "{grade} pulmonary edema.",
    "Effusion": "{extent} {side} pleural effusion.",
    "Nodule": "{side} {zone} zone nodule, {mm} mm.",
    "Pneumothorax": "{extent} {side} pneumothorax.",
}


def zone(finding: Planted) -> str:
    """Name the zone of a lung by height."""
    return ("upper", "mid", "lower")[min(int(finding.v * 3), 2)]


def millimetres(finding: Planted) -> int:
    """Return the size in whole millimetres (a film is 35 cm wide)."""
    return round(finding.size * FILM_MM)


def extent(name: str, finding: Planted) -> str:
    """Say trace, small, moderate or large of a finding that is told by its extent."""
    if name == "Effusion" and finding.size < _TRACE:
        return "trace"
    low, high = {
        "Effusion": (0.10, 0.18),
        "Pneumothorax": (0.035, 0.05),
        "Consolidation": (0.13, 0.165),
    }[name]
    return "small" if finding.size < low else "moderate" if finding.size < high else "large"


def fill(template: str, **fields: object) -> str:
    """Fill in a sentence, which begins with a capital."""
    text = template.format(**fields)
    return text[0].upper() + text[1:]


def fields_of(name: str, finding: Planted) -> dict[str, object]:
    """Return what the sentences on a planted finding may tell of it."""
    told: dict[str, object] = {
        "side": _SIDE[finding.side],
        "zone": zone(finding),
        "mm": millimetres(finding),
        "cm": finding.size * FILM_MM / 10,
        "grade": "mild" if finding.contrast < 0.13 else "moderate",
    }
    if name in ("Consolidation", "Effusion", "Pneumothorax"):
        told["extent"] = extent(name, finding)
    return told


def _heart(d: Draws, study: Study) -> tuple[str, str]:
    if study.ctr <= CARDIOMEGALY_RATIO:
        return fill(d.pick(NORMAL_HEART), ratio=study.ctr), ""
    grade, degree = ("mildly", "mild") if study.ctr < 0.54 else ("moderately", "moderate")
    text = fill(d.pick(PRESENT["Cardiomegaly"]), grade=grade, degree=degree, ratio=study.ctr)
    return text, "Cardiomegaly."


def write(study: Study, draws: Draws) -> tuple[str, str]:
    """Return the findings and the impression of a study."""
    d = draws
    views = {"PA": "PA view of the chest.", "AP": "AP view of the chest."}
    lead = "PA and lateral views." if len(study.views) == 2 else views[study.views[0]]
    heart, enlarged = _heart(d, study)
    texts, verdicts, negatives = [lead, heart], [enlarged] if enlarged else [], []
    for name, denials in ABSENT.items():
        if name in study.planted:
            told = fields_of(name, study.planted[name])
            texts.append(fill(d.pick(PRESENT[name]), **told))
            verdicts.append(fill(_VERDICTS[name], **told))
        elif name in ("Effusion", "Pneumothorax") or d.chance(0.55):
            negatives.append(fill(d.pick(denials)))
    if d.chance(0.5):
        negatives.append(d.pick(("The bones are intact.", "No acute bony abnormality.")))
    return " ".join(texts + negatives), " ".join(verdicts) or fill(d.pick(NORMAL))
