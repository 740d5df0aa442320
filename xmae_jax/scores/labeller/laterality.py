"""Which side a finding is on: of the words "left", "right" and "both", those that belong to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xmae_jax.scores.labeller import rules

_OF = {"left": {"left"}, "right": {"right"}, "both": {"left", "right"}}
_PARTING = ("comma", "and", "or", "verb")
_ENDING = ("stop", "with")
_MEANING = ("means", "maybe", "either")
_JOINING = ("and", "or", "with", "nothing", "at", *_MEANING)
"""Cues over which a finding may share the sides of the one before it."""


class Hit(NamedTuple):
    """A phrase of a sentence."""

    kind: str
    value: str
    start: int
    """Place of its first word."""
    end: int


@dataclasses.dataclass
class Mention:
    """A finding in a sentence."""

    finding: str
    status: int
    start: int
    end: int
    segment: int
    chunk: int
    sides: set[str] = dataclasses.field(default_factory=set)
    behind: bool = False
    """Whether its sides stand behind it."""


def place_sides(mentions: Sequence[Mention], hits: Sequence[Hit]) -> None:
    """Give each finding of a sentence its sides.

    A side belongs to the finding behind it ("left effusion"), or to the one before it after a
    preposition ("effusion on the left") and where no finding follows. Two sides before one finding
    are both its own. A finding without a side shares that of the one that it is joined to.
    """
    sides = [hit for hit in hits if hit.kind == "side"]
    if not sides or not mentions:
        return
    later: Mention | None = None
    for side in reversed(sides):
        later = _owner(side, mentions, hits, later=later)
        if later is None:
            continue
        for mention in mentions:
            if mention.start == later.start:
                mention.sides |= _OF[side.value]
                mention.behind = mention.behind or side.start > mention.start
    _share(mentions, hits)
    for mention in mentions:
        if mention.finding in rules.UNSIDED:
            mention.sides.clear()


def _owner(
    side: Hit, mentions: Sequence[Mention], hits: Sequence[Hit], *, later: Mention | None
) -> Mention | None:
    """Find whose a side is; later: whose the side behind it is."""
    before = max((m for m in mentions if m.end <= side.start), key=_start, default=None)
    behind = min((m for m in mentions if m.start >= side.end), key=_start, default=None)
    lead = _between(hits, before.end, side.start) if before else []
    tail = _between(hits, side.end, behind.start) if behind else []
    if before and any(cue in _ENDING for cue in lead):
        before = None
    if behind and any(cue in _ENDING for cue in tail):
        behind = None
    parted = any(cue in _PARTING for cue in tail)
    if before is None and behind is not None and parted and later is not None:
        clause = "verb" in tail and any(cue != "verb" for cue in tail[tail.index("verb") :])
        if later.start == behind.start and (clause or (later.behind and "comma" in tail)):
            return None
    if before is None or behind is None:
        return before or behind
    placed = "at" in lead
    direct = placed and not any(cue in _PARTING for cue in lead[_last(lead, "at") :])
    if direct or (placed and parted):
        return before
    if not parted or later is behind:
        return behind
    return before


def _start(mention: Mention) -> int:
    return mention.start


def _last(values: Sequence[str], value: str) -> int:
    return len(values) - 1 - list(reversed(values)).index(value)


def _between(hits: Iterable[Hit], start: int, end: int) -> list[str]:
    return [hit.value for hit in hits if hit.kind == "cue" and start <= hit.start < end]


def _share(mentions: Sequence[Mention], hits: Sequence[Hit]) -> None:
    """Let a finding without a side share that of its neighbour."""
    ordered = sorted(mentions, key=_start)
    for one, two in zip(ordered, ordered[1:], strict=False):
        between = _between(hits, one.end, two.start)
        if one.sides and not two.sides and two.start != one.start:
            same = any(cue in _MEANING for cue in between)
            if all(cue in _JOINING or (same and cue == "comma") for cue in between):
                two.sides, two.behind = set(one.sides), one.behind
    for two, one in zip(ordered[::-1], ordered[-2::-1], strict=False):
        if two.sides and two.behind and not one.sides:
            if _between(hits, one.end, two.start) in (["and"], ["or"]):
                one.sides, one.behind = set(two.sides), True
