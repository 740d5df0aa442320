"""Read a report by the tables of `rules.py`: sentences, phrases, the scope of each cue.

The design is that of NegEx and CheXpert's labeller: a finding is present unless a cue in whose
scope it stands denies it or leaves it open. Differs from them in that a part of the chest and its
state make a finding together ("the heart is enlarged"), that what a normal part rules out is
absent, and that each finding has its sides. Sentences are read one by one and kept, since reports
repeat each other's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from xmae_jax.scores.labeller import rules
from xmae_jax.scores.labeller.laterality import Hit, Mention, place_sides

Labels = dict[str, int | None]
"""Finding -> 1 present, 0 absent, -1 uncertain, None not mentioned."""

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

_HEADER = re.compile(r"(?:^|(?<=\s))([A-Z][A-Za-z ]{2,40}):")
_END = re.compile(
    r"(?<!\bvs)(?<!\bdr)(?<!\bapprox)[.!?]+(?=\s|$)|\n\s*\n|(?:^|\s)\d{1,2}[.)](?=\s*[a-z])", re.I
)
_MARK = re.compile(r"\bX{2,}\b|_{2,}")
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?|[,;:()/]")
_KEY = 3  # letters by which phrases are found


class Said(NamedTuple):
    """What a sentence says of a finding."""

    finding: str
    status: int
    sides: frozenset[str]


def label(text: str) -> Labels:
    """Label the 14 findings of CheXpert and some more in a report, or in a section of it.

    A finding that is present anywhere is present, else uncertain, else absent. `No Finding` is 1
    if no other is present or uncertain, support devices apart, named here or not; of a text
    without words nothing is known.
    """
    found: dict[str, set[int]] = {}
    words = False
    for sentence in _sentences(text):
        words = True
        for mention in _read(sentence):
            for name in (mention.finding, rules.KINDS.get(mention.finding)):
                if name:
                    found.setdefault(name, set()).add(mention.status)
    labels: Labels = {name: _verdict(found.get(name, set())) for name in rules.REPORTED}
    if words:
        something = any(
            statuses & {PRESENT, UNCERTAIN}
            for name, statuses in found.items()
            if name != "Support Devices"
        )
        labels["No Finding"] = ABSENT if something else PRESENT
    return labels


def sides(text: str) -> dict[str, set[str]]:
    """Return the sides, "left" and "right", of the findings that are present and have any."""
    found: dict[str, set[str]] = {}
    for sentence in _sentences(text):
        for mention in _read(sentence):
            if mention.status == PRESENT and mention.sides:
                for name in (mention.finding, rules.KINDS.get(mention.finding)):
                    if name in rules.REPORTED:
                        found.setdefault(name, set()).update(mention.sides)
    return found


def _verdict(statuses: set[int]) -> int | None:
    return next((one for one in (PRESENT, UNCERTAIN, ABSENT) if one in statuses), None)


def _sentences(text: str) -> Iterator[str]:
    """Split the sections that tell of the film into sentences, in lower case.

    Of a section that does not, all is left out if its header is in capitals, else a sentence.
    """
    parts = _HEADER.split(text)
    yield from _split(parts[0])
    for header, body in zip(parts[1::2], parts[2::2], strict=True):
        if not header.lower().startswith(rules.OTHER_SECTIONS):
            yield from _split(f"{header} {body}")
        elif not header.isupper():
            yield from list(_split(body))[1:]


def _split(text: str) -> Iterator[str]:
    for part in _END.split(text):
        sentence = _MARK.sub(" ", part).strip()
        if re.search(r"\w", sentence):
            yield sentence.lower()


# Phrases --------------------------------------------------------------------------------------


def _slot(place: str) -> str:
    if place == "~":
        return r"(?:(?!(?:and|or|no|is|are|,|;) )[^ ]+ ){0,3}"
    optional = place.startswith("?")
    words = (
        re.escape(word[:-1]) + "[^ ]*" if word.endswith("*") else re.escape(word)
        for word in place.removeprefix("?").split("|")
    )
    return f"(?:(?:{'|'.join(words)}) )" + ("?" if optional else "")


def _firsts(places: list[str]) -> Iterator[str]:
    """Yield the words that a phrase may begin with."""
    for place in places:
        yield from (word.removesuffix("*") for word in place.removeprefix("?").split("|"))
        if not place.startswith("?"):
            return


def _index() -> Mapping[str, list[tuple[re.Pattern[str], str, str]]]:
    tables = {
        "finding": rules.FINDINGS,
        "part": rules.PARTS,
        "state": rules.STATES,
        "cue": rules.CUES,
        "side": rules.SIDES,
    }
    index: dict[str, list[tuple[re.Pattern[str], str, str]]] = {}
    for kind, table in tables.items():
        for value, phrases in table.items():
            for phrase in phrases:
                places = phrase.split()
                pattern = re.compile("".join(map(_slot, places)))
                for key in {word[:_KEY] for word in _firsts(places)}:
                    index.setdefault(key, []).append((pattern, kind, value))
    return index


_INDEX = _index()


def _hits(sentence: str) -> Iterator[Hit]:
    """Find the longest phrase at each word, from left to right; all of that length."""
    words = _WORD.findall(sentence.replace("-", " "))
    line = " ".join(words) + " "
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    at = 0
    while at < len(words):
        best, found = 0, []
        for pattern, kind, value in _INDEX.get(words[at][:_KEY], ()):
            match = pattern.match(line, starts[at])
            if match and match.end() >= best:
                if match.end() > best:
                    best, found = match.end(), []
                found.append((kind, value))
        end = at + line.count(" ", starts[at], best) if found else at + 1
        for kind, value in dict.fromkeys(found):
            yield Hit(kind, value, at, end)
        at = end


# Scopes ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Reader:
    """What holds at a place of a sentence."""

    mentions: list[Mention] = dataclasses.field(default_factory=list)
    no: bool = False
    maybe: bool = False
    history: bool = False
    used: bool = False
    """Whether the cue in force has met what it is about."""
    listed: bool = False
    """Whether there was a comma, or the like, since a negation."""
    verb: bool = False
    segment: int = 0
    chunk: int = 0
    """Number of what stands between two cues or commas."""
    parts: list[Hit] = dataclasses.field(default_factory=list)
    told: bool = False
    """Whether the parts have had their state."""
    ahead: Hit | None = None
    """A state of the parts to come."""

    def clause(self) -> None:
        self.no = self.maybe = self.history = self.used = self.verb = self.told = False
        self.segment += 1
        self.parts, self.ahead = [], None

    def subject(self) -> None:
        """Begin a new segment with the first finding or part after a verb."""
        self.used = True
        if self.verb:
            self.verb = False
            self.segment += 1

    def add(self, findings: Iterable[str], hit: Hit, *, unsure: bool = False) -> None:
        status = ABSENT if self.no else UNCERTAIN if self.maybe or unsure else PRESENT
        for name in findings:
            self.mentions.append(
                Mention(name, status, hit.start, hit.end, self.segment, self.chunk)
            )

    def back(self, status: int) -> None:
        """Deny the findings of this segment, or leave those of this chunk open."""
        for mention in self.mentions:
            here = (mention.segment, mention.chunk)[: 1 + (status == UNCERTAIN)]
            if mention.status == PRESENT and here == (self.segment, self.chunk)[: len(here)]:
                mention.status = status


@lru_cache(maxsize=1 << 16)
def _read(sentence: str) -> tuple[Said, ...]:
    """Return what a sentence says; it is kept, since sentences come again and again."""
    reader, hits = _Reader(), list(_hits(sentence))
    for place, hit in enumerate(hits):
        following = next((h for h in hits[place + 1 :] if h.start >= hit.end and _counts(h)), None)
        if hit.kind == "cue":
            _cue(reader, hit)
        elif hit.kind == "finding" and not reader.history:
            reader.subject()
            reader.add([hit.value], hit)
        elif hit.kind == "part":
            half = place > 0 and hits[place - 1].value in ("left", "right")
            _part(reader, hit._replace(kind="half") if half else hit)
        elif hit.kind == "state":
            _state(reader, hit, following)
    place_sides(reader.mentions, hits)
    return tuple(Said(m.finding, m.status, frozenset(m.sides)) for m in reader.mentions)


def _counts(hit: Hit) -> bool:
    """Tell whether a phrase may part a state from what it is about."""
    return hit.kind != "side" and hit.value != "at"


def _cue(reader: _Reader, hit: Hit) -> None:
    if hit.value in rules.CHUNKS:
        reader.chunk += 1
    if hit.value in ("stop", "with"):
        reader.clause()
    elif hit.value == "history":
        reader.history, reader.used = True, False
    elif hit.value == "no":
        reader.no, reader.maybe, reader.used, reader.listed = True, False, False, False
    elif hit.value == "maybe" and not (reader.no and not reader.listed):
        reader.no, reader.maybe, reader.used = False, True, False
    elif hit.value == "none":
        reader.back(ABSENT)
    elif hit.value == "unsure":
        reader.back(UNCERTAIN)
    elif hit.value == "verb":
        reader.verb, reader.ahead = True, None
        if reader.used:
            reader.no = reader.maybe = reader.history = False
    elif hit.value == "either":
        reader.back(UNCERTAIN)
        reader.maybe, reader.used = True, False
    elif hit.value in ("comma", "and"):
        reader.listed = True
        reader.history = reader.history and not reader.used


def _part(reader: _Reader, hit: Hit) -> None:
    reader.subject()
    if reader.told:
        reader.parts, reader.told = [], False
    if reader.ahead is not None:
        _tell(reader, reader.ahead.value, hit)
    else:
        reader.parts.append(hit)


def _state(reader: _Reader, hit: Hit, following: Hit | None) -> None:
    near = following is not None and following.start - hit.end <= rules.NEAR
    kind = following.kind if following is not None and near else ""
    if kind == "part":
        reader.ahead = hit
    if reader.told or kind in ("part", "finding"):
        return
    for part in reader.parts:
        _tell(reader, hit.value, part)
    reader.told = bool(reader.parts)
    reader.used = True


def _tell(reader: _Reader, state: str, part: Hit) -> None:
    """Take down what a part and its state say together."""
    if state == "normal":
        if not reader.no and part.kind != "half":
            for name in rules.NORMAL[part.value]:
                reader.mentions.append(
                    Mention(name, ABSENT, part.start, part.end, reader.segment, reader.chunk)
                )
    else:
        names = rules.ABNORMAL.get((part.value, state), ())
        reader.add(names, part, unsure=state in rules.UNSURE_STATES)
