"""How well two texts of a study agree on its findings and their sides, by the labeller's rules.

F1 over the findings of two sets: the 14 of CheXpert, and the five on which it compares models,
micro (outcomes of all findings summed) and macro (the mean of the findings' F1). What is uncertain
counts by a named policy; a finding that is not mentioned is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

from xmae_jax.scores import bootstrap
from xmae_jax.scores.decisions import rates
from xmae_jax.scores.labeller import CHEXPERT, FURTHER, label, sides

NAMES = (*CHEXPERT, *FURTHER)
SETS = {
    "chexpert_14": CHEXPERT,
    "chexpert_5": (
        "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion",
    ),
}  # fmt: skip
Policy = Literal["uncertain_present", "uncertain_absent", "uncertain_left_out"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_RATES = {"precision": "ppv", "recall": "sensitivity", "f1": "f1"}


def labelled(texts: Sequence[str]) -> Float64[np.ndarray, "n c"]:
    """Label each text with NAMES: 1 present, 0 absent, -1 uncertain, NaN not mentioned."""
    rows = [[_number(one) for one in label(text).values()] for text in texts]
    return np.array(rows, np.float64).reshape(len(rows), len(NAMES))


def _number(one: int | None) -> float:
    return np.nan if one is None else float(one)


def agreement(
    said: Float64[np.ndarray, "n c"],
    truth: Float64[np.ndarray, "n c"],
    *,
    known: Bool[np.ndarray, "n c"],
    patients: Int64[np.ndarray, " n"],
    policy: Policy,
) -> dict[str, Any]:
    """Score labels of NAMES by others, for each finding and each set; 95 % intervals by patients.

    known: where the truth is known; elsewhere nothing is scored. `always_normal` of a set is the
    micro F1 of saying of every film that it is normal.
    """
    marks = _marks(said, truth, known=known, policy=policy)
    drawn = _drawn(marks.reshape(len(marks), -1), patients)
    drawn = drawn.reshape(-1, len(NAMES), 4)
    total, several = marks.sum(axis=0), bool(patients.max(initial=0))
    each = {
        name: _entry(total[c], drawn[:, c], several=several)
        | dict(zip(("tp", "fp", "fn", "tn"), total[c].astype(int).tolist(), strict=True))
        for c, name in enumerate(NAMES)
    }
    normal = np.tile((np.array(NAMES) == "No Finding").astype(np.float64), (len(truth), 1))
    plain = _marks(normal, truth, known=known, policy=policy).sum(axis=0)
    sets = {}
    for name, members in SETS.items():
        places = [NAMES.index(one) for one in members]
        micro = _entry(total[places].sum(0), drawn[:, places].sum(1), several=several)
        sets[name] = {
            "micro": micro,
            "macro": _macro(total, drawn, places, several=several),
            "always_normal": _told(rates(plain[places].sum(0))["f1"]),
        }
    return {"policy": policy, "findings": each, **sets}


def _marks(
    said: Float64[np.ndarray, "n c"],
    truth: Float64[np.ndarray, "n c"],
    *,
    known: Bool[np.ndarray, "n c"],
    policy: Policy,
) -> Float64[np.ndarray, "n c 4"]:
    """Mark true and false positives, false and true negatives, where anything is scored."""
    counted = known.copy()
    if policy == "uncertain_left_out":
        counted &= (said != -1) & (truth != -1)
    called, there = (_positive(one, policy) for one in (said, truth))
    marks = np.stack([called & there, called & ~there, ~called & there, ~called & ~there], axis=-1)
    return (marks & counted[..., None]).astype(np.float64)


def _positive(labels: Float64[np.ndarray, "n c"], policy: Policy) -> Bool[np.ndarray, "n c"]:
    return (labels == 1) | ((labels == -1) & (policy == "uncertain_present"))


def _drawn(
    values: Float64[np.ndarray, "n k"], patients: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, "r k"]:
    return bootstrap.resample_sums(values, patients, people=int(patients.max(initial=0)) + 1)


def _entry(
    total: Float64[np.ndarray, " 4"], drawn: Float64[np.ndarray, "r 4"], *, several: bool
) -> dict[str, Any]:
    found, replicates = rates(total), rates(drawn)
    entry: dict[str, Any] = {}
    for name, rate in _RATES.items():
        entry[name] = _told(found[rate])
        entry[f"{name}_interval"] = bootstrap.interval(replicates[rate]) if several else None
    return entry


def _told(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _macro(
    total: Float64[np.ndarray, "c 4"],
    drawn: Float64[np.ndarray, "r c 4"],
    places: Sequence[int],
    *,
    several: bool,
) -> dict[str, Any]:
    """Average F1 over the findings that either side has; those that none has are left out."""
    there = [c for c in places if total[c, :3].any()]
    entry: dict[str, Any] = {"f1": None, "f1_interval": None}
    if there:
        entry["f1"] = float(np.mean([rates(total[c])["f1"] for c in there]))
        f1 = bootstrap.mean_of_defined(rates(drawn[:, there])["f1"].T)
        entry["f1_interval"] = bootstrap.interval(f1) if several else None
    left_out = [NAMES[c] for c in places if c not in there]
    return {**entry, "findings": len(there), "left_out": left_out}


def difference(
    first: Float64[np.ndarray, "n c"],
    second: Float64[np.ndarray, "n c"],
    truth: Float64[np.ndarray, "n c"],
    *,
    patients: Int64[np.ndarray, " n"],
    policy: Policy,
) -> dict[str, Any]:
    """Return micro F1 of each set by two labellings, first minus second; patients drawn once."""
    everywhere = np.ones(truth.shape, bool)
    marks = [_marks(said, truth, known=everywhere, policy=policy) for said in (first, second)]
    out = {}
    for name, members in SETS.items():
        places = [NAMES.index(one) for one in members]
        values, drawn = zip(*(_micro(one[:, places], patients) for one in marks), strict=True)
        found = [_told(value) for value in values]
        out[name] = {
            "first": found[0],
            "second": found[1],
            "difference": None if None in found else float(values[0] - values[1]),
            "interval": (
                bootstrap.interval(drawn[0] - drawn[1]) if patients.max(initial=0) else None
            ),
        }
    return out


def _micro(
    marks: Float64[np.ndarray, "n k 4"], patients: Int64[np.ndarray, " n"]
) -> tuple[Any, Float64[np.ndarray, " r"]]:
    summed = marks.sum(axis=1)
    return rates(summed.sum(axis=0))["f1"], rates(_drawn(summed, patients))["f1"]


def side_agreement(
    generated: Sequence[str],
    references: Sequence[str],
    *,
    patients: Int64[np.ndarray, " n"],
) -> dict[str, Any]:
    """Count the findings with sides in the references that the texts have, and on the same sides.

    `right` is the share of all such findings, `right_of_found` of those that the text has with
    a side at all.
    """
    marks = np.zeros((len(references), len(NAMES), 3))
    for row, (text, reference) in enumerate(zip(generated, references, strict=True)):
        told = sides(text)
        for name, wanted in sides(reference).items():
            if name not in CHEXPERT:  # a nodule is a lesion, and would count twice
                continue
            found = told.get(name)
            marks[row, NAMES.index(name)] = 1, found is not None, found == wanted
    total, several = marks.sum(axis=0), bool(patients.max(initial=0))
    each = {
        name: dict(zip(("sided", "found", "right"), total[c].astype(int).tolist(), strict=True))
        for c, name in enumerate(NAMES)
        if total[c, 0]
    }
    drawn = _drawn(marks.sum(axis=1), patients)
    sided, found, right = total.sum(axis=0)
    out: dict[str, Any] = {"sided": int(sided), "found": int(found), "same": int(right)}
    for name, of, whole in (("right", 0, sided), ("right_of_found", 1, found)):
        out[name] = float(right / whole) if whole else None
        out[f"{name}_interval"] = None
        if whole and several:
            shares = np.divide(
                drawn[:, 2], drawn[:, of], out=np.full(len(drawn), np.nan), where=drawn[:, of] > 0
            )
            out[f"{name}_interval"] = bootstrap.interval(shares)
    return {**out, "findings": each}
