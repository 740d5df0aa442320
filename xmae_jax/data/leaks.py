"""Does a film, a copy of it, or another film of its patient stand on both sides?"""

from collections.abc import Sequence
from dataclasses import dataclass

from xmae_jax.data.index import Index, near_pairs
from xmae_jax.data.manifest import DataError

_TOLD = 3  # of each kind, by id; of more the number is told


class Leaked(DataError):
    """Films or patients on both sides; main exits 65."""


@dataclass(frozen=True)
class Leak:
    """Two films that must not be on two sides."""

    kind: str  # "patient", "copy" or "near copy"
    ids: tuple[str, str]
    names: tuple[str, str]  # of their sets


def other_keys(sets: Sequence[Index]) -> str | None:
    """Say which sets cannot be compared by patient, their ids being made with several keys."""
    by_key: dict[str, str] = {}
    for one in sets:
        by_key.setdefault(one.key, one.name)
    if len(by_key) < 2:
        return None
    told = ", ".join(f"{name} with key {key}" for key, name in by_key.items())
    return f"ids of patients were made with different keys and cannot be compared: {told}"


def find_leaks(train: Sequence[Index], evaluation: Sequence[Index]) -> list[Leak]:
    """List patients, copies and near copies that stand in both; patients under one key only."""
    leaks = []
    for seen in train:
        for held in evaluation:
            leaks += _between(seen, held)
    return leaks


def describe_same(count: int) -> str:
    """Tell of reports on both sides: a note, since their patients may be several."""
    return (
        f"{count:,} long reports stand in two splits word for word, with a film in one alone:"
        " templates, or patients whom the sets name in two ways (data_prep.reports"
        " --patient-prefix)"
    )


def same_reports(train: Sequence[Index], evaluation: Sequence[Index]) -> int:
    """Count long reports that stand in both word for word, with a film on one side alone.

    Under one key only. Patients may have them in common, as templates; but where the sets name
    their patients in two ways, nothing else tells that a patient stands in both.
    """
    same: set[str] = set()
    for seen in train:
        for held in evaluation:
            if seen.key == held.key:
                same |= (seen.texts_alone & held.texts) | (seen.texts & held.texts_alone)
    return len(same)


def _between(seen: Index, held: Index) -> list[Leak]:
    names = (seen.name, held.name)
    leaks = []
    copies: set[tuple[int, int]] = set()
    for kind, keys in (("patient", "patients"), ("copy", "pixels")):
        if kind == "patient" and seen.key != held.key:
            continue
        first: dict[str, int] = {}
        for i, value in enumerate(getattr(seen, keys)):
            first.setdefault(value, i)
        for j, value in enumerate(getattr(held, keys)):
            if value in first:
                leaks.append(Leak(kind, (seen.ids[first[value]], held.ids[j]), names))
                if kind == "copy":
                    copies.add((first[value], j))
    for i, j, _ in near_pairs(seen.hashes, held.hashes):
        if seen.pixels[i] != held.pixels[j]:
            leaks.append(Leak("near copy", (seen.ids[i], held.ids[j]), names))
    return leaks


def describe(leaks: Sequence[Leak]) -> str:
    """Tell of the first leaks of each kind, and how many there are, a line a kind."""
    lines = []
    for kind in ("patient", "copy", "near copy"):
        of_kind = [leak for leak in leaks if leak.kind == kind]
        if not of_kind:
            continue
        told = "; ".join(
            f"{leak.ids[0]} of {leak.names[0]} and {leak.ids[1]} of {leak.names[1]}"
            for leak in of_kind[:_TOLD]
        )
        more = f", {len(of_kind)} pairs in all" if len(of_kind) > _TOLD else ""
        text = "one patient" if kind == "patient" else f"a {kind} of one film"
        lines.append(f"{text} on both sides: {told}{more}")
    return "\n".join(lines)
