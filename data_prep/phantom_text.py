"""Findings and impression of a phantom study, written from the numbers of its draw."""

from __future__ import annotations

from data_prep.phantom_anatomy import CARDIOMEGALY_RATIO, Planted, Study
from data_prep.phantom_raster import FILM_MM, Draws

_SIDE = {-1: "right", 1: "left"}
_CLEAR = {
    "Atelectasis": ("No atelectasis.", "No band of volume loss."),
    "Consolidation": ("No consolidation.", "No focal airspace opacity.", "The lungs are clear."),
    "Edema": ("No pulmonary edema.", "Pulmonary vascularity is normal."),
    "Effusion": ("No pleural effusion.", "The costophrenic angles are sharp."),
    "Nodule": ("No nodule is seen.", "No lung nodule."),
    "Pneumothorax": ("No pneumothorax.", "There is no pneumothorax."),
}
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No active disease in the chest.",
)


def zone(finding: Planted) -> str:
    """Name the zone of a lung by height."""
    return ("upper", "mid", "lower")[min(int(finding.v * 3), 2)]


def millimetres(finding: Planted) -> int:
    """Return the size in whole millimetres (a film is 35 cm wide)."""
    return round(finding.size * FILM_MM)


def extent(name: str, finding: Planted) -> str:
    """Say small, moderate or large."""
    low, high = {
        "Effusion": (0.10, 0.18),
        "Pneumothorax": (0.035, 0.05),
        "Consolidation": (0.13, 0.165),
    }[name]
    return "small" if finding.size < low else "moderate" if finding.size < high else "large"


def _nodule(d: Draws, f: Planted) -> tuple[str, str]:
    side, where, size = _SIDE[f.side], zone(f), millimetres(f)
    text = d.pick(
        (
            f"A {size} mm nodule projects over the {side} {where} zone.",
            f"There is a rounded {size} mm nodule in the {side} {where} zone.",
            f"Nodule of {size / 10:.1f} cm in the {where} zone of the {side} lung.",
        )
    )
    return text, f"{side.capitalize()} {where} zone nodule, {size} mm."


def _consolidation(d: Draws, f: Planted) -> tuple[str, str]:
    side, where, size = _SIDE[f.side], zone(f), extent("Consolidation", f)
    text = d.pick(
        (
            f"{size.capitalize()} patchy consolidation in the {side} {where} zone.",
            f"There is a {size} area of airspace opacity in the {side} {where} zone.",
            f"Ill-defined {side} {where} zone consolidation, {size} in extent.",
        )
    )
    return text, f"{side.capitalize()} {where} zone consolidation."


def _atelectasis(d: Draws, f: Planted) -> tuple[str, str]:
    side, size = _SIDE[f.side], f.size * FILM_MM / 10
    text = d.pick(
        (
            f"Linear atelectasis at the {side} base, about {size:.0f} cm long.",
            f"Band of plate-like atelectasis in the {side} lower zone.",
            f"Thin horizontal opacity at the {side} base, in keeping with atelectasis.",
        )
    )
    return text, f"{side.capitalize()} basal atelectasis."


def _edema(d: Draws, f: Planted) -> tuple[str, str]:
    grade = "mild" if f.contrast < 0.13 else "moderate"
    text = d.pick(
        (
            f"{grade.capitalize()} perihilar haze on both sides with prominent vessels.",
            f"Bilateral perihilar haziness and septal lines, {grade} interstitial edema.",
        )
    )
    return text, f"{grade.capitalize()} pulmonary edema."


def _effusion(d: Draws, f: Planted) -> tuple[str, str]:
    side, size = _SIDE[f.side], extent("Effusion", f)
    if f.size < 0.075:
        text = f"Blunting of the {side} costophrenic angle."
        return text, f"Trace {side} pleural effusion."
    text = d.pick(
        (
            f"{size.capitalize()} {side} pleural effusion with a meniscus.",
            f"There is a {size} pleural effusion on the {side}.",
        )
    )
    return text, f"{size.capitalize()} {side} pleural effusion."


def _pneumothorax(d: Draws, f: Planted) -> tuple[str, str]:
    side, size, wide = _SIDE[f.side], extent("Pneumothorax", f), millimetres(f)
    text = d.pick(
        (
            f"{size.capitalize()} {side} apical pneumothorax; the pleural line lies {wide} mm "
            "from the chest wall.",
            f"A pleural line is seen at the {side} apex, {wide} mm from the wall.",
        )
    )
    return text, f"{size.capitalize()} {side} pneumothorax."


_WRITTEN = {
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Effusion": _effusion,
    "Nodule": _nodule,
    "Pneumothorax": _pneumothorax,
}


def _heart(d: Draws, study: Study) -> tuple[str, str]:
    ratio = f"{study.ctr:.2f}"
    if study.ctr > CARDIOMEGALY_RATIO:
        grade = "mildly" if study.ctr < 0.54 else "clearly"
        text = d.pick(
            (
                f"The heart is {grade} enlarged, cardiothoracic ratio {ratio}.",
                f"{grade.capitalize()} enlarged cardiac silhouette.",
            )
        )
        return text, "Cardiomegaly."
    return d.pick(
        ("Heart size is normal.", f"The heart is not enlarged (cardiothoracic ratio {ratio}).")
    ), ""


def write(study: Study, draws: Draws) -> tuple[str, str]:
    """Return the findings and the impression of a study."""
    d = draws
    views = {"PA": "PA view of the chest.", "AP": "AP view of the chest."}
    lead = "PA and lateral views." if len(study.views) == 2 else views[study.views[0]]
    heart, enlarged = _heart(d, study)
    texts, verdicts, negatives = [lead, heart], [enlarged] if enlarged else [], []
    for name, clear in _CLEAR.items():
        if name in study.planted:
            text, verdict = _WRITTEN[name](d, study.planted[name])
            texts.append(text)
            verdicts.append(verdict)
        if name not in study.planted and (name in ("Effusion", "Pneumothorax") or d.chance(0.55)):
            allowed = [c for c in clear if c != "The lungs are clear." or _lungs_clear(study)]
            negatives.append(d.pick(allowed))
    if d.chance(0.5):
        negatives.append(d.pick(("The bones are intact.", "No acute bony abnormality.")))
    return " ".join(texts + negatives), " ".join(verdicts) or d.pick(_NORMAL)


def _lungs_clear(study: Study) -> bool:
    return not study.planted
