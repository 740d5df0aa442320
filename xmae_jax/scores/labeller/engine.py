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

_HEADER = re.compile(
    r"(?:^|(?<=\s))([A-Z][A-Za-z ]{2,40}|"
    rf"{'|'.join((*rules.OTHER_SECTIONS, *rules.OWN_SECTIONS))}):"
)
_END = re.compile(
    r"(?<!\bvs)(?<!\bdr)(?<!\bapprox)[.!?]+(?=\s|$)|(?:^|\s)\d{1,2}[.)](?=\s*[a-z])"
    r"|\n\s*(?=\n|(?-i:[A-Z])|[-*\u2022])|(?:^|\s)[-*\u2022]\s+(?=(?-i:[A-Z]))",
    re.I,
)
_MARK = re.compile(r"\bX{2,}\b|_{2,}")
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)?|[,;:()/]")
_NOT = re.compile(r"n['\u2019]t\b")
_LAST = "."
"""Stands for the end of a sentence in phrases."""
_KEY = 3  # letters by which phrases are found
_TELLING = ("finding", "part", "state", "all")


class Said(NamedTuple):
    """What a sentence says of a finding."""

    finding: str
    status: int
    sides: frozenset[str]


class Sentence(NamedTuple):
    """What a sentence says."""

    said: tuple[Said, ...]
    known: bool
    """Whether it tells of the chest at all, in words of the tables."""


def label(text: str) -> Labels:
    """Label the 14 findings of CheXpert and some more in a report, or in a section of it.

    A finding that is present anywhere is present, else uncertain, else absent. `No Finding` is 1
    if no other is present or uncertain, support devices apart, named here or not; of a text
    in which the rules know nothing it is None.
    """
    found: dict[str, set[int]] = {}
    known = False
    for sentence in _sentences(text):
        read = _read(sentence)
        known = known or read.known
        for mention in read.said:
            for name in (mention.finding, rules.KINDS.get(mention.finding)):
                if name:
                    found.setdefault(name, set()).add(mention.status)
    labels: Labels = {name: _verdict(found.get(name, set())) for name in rules.REPORTED}
    if known:
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
        for mention in _read(sentence).said:
            if mention.status == PRESENT and mention.sides:
                for name in (mention.finding, rules.KINDS.get(mention.finding)):
                    if name in rules.REPORTED:
                        found.setdefault(name, set()).update(mention.sides)
    return found


def _verdict(statuses: set[int]) -> int | None:
    return next((one for one in (PRESENT, UNCERTAIN, ABSENT) if one in statuses), None)


def _sentences(text: str) -> Iterator[str]:
    """Split the sections that tell of the film into sentences, in lower case.

    Of a section that does not, all up to an empty line is left out if its header is in capitals,
    else a sentence.
    """
    parts = _HEADER.split(text)
    yield from _split(parts[0])
    for header, body in zip(parts[1::2], parts[2::2], strict=True):
        if header.lower() not in rules.OTHER_SECTIONS:
            yield from _split(f"{header}: {body}")
        else:
            own, *rest = re.split(r"\n\s*\n", body.lstrip(), maxsplit=1)
            if not header.isupper():
                yield from list(_split(own))[1:]
            yield from _split("".join(rest))


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
        "new": {"": rules.NEW},
        "all": {"": rules.ALL},
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
    words = [*_WORD.findall(_NOT.sub(" not", sentence).replace("-", " ")), _LAST]
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
    either: bool = False
    """Whether the next finding is the second of two."""
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
        self.parts, self.ahead, self.either = [], None, False

    def subject(self) -> None:
        """Begin a new segment with the first finding or part after a verb."""
        self.used = True
        if self.verb:
            self.verb = False
            self.segment += 1

    def add(self, findings: Iterable[str], hit: Hit, *, unsure: bool = False) -> None:
        unsure = unsure or self.maybe or self.either
        status = ABSENT if self.no else UNCERTAIN if unsure else PRESENT
        self.either = False
        for name in findings:
            self.mentions.append(
                Mention(name, status, hit.start, hit.end, self.segment, self.chunk)
            )

    def back(self, status: int, *, chunk: bool) -> None:
        """Deny the findings of this segment, or of this chunk of it, or leave them open."""
        for mention in self.mentions:
            here = mention.segment == self.segment and chunk <= (mention.chunk == self.chunk)
            if here and mention.status in (PRESENT, UNCERTAIN):
                mention.status = status

    def choose(self) -> None:
        """Leave the last finding and the next one open."""
        last = self.mentions[-1].start if self.mentions else None
        for mention in self.mentions:
            if mention.start == last and mention.status == PRESENT:
                mention.status = UNCERTAIN
        self.either = True


@lru_cache(maxsize=1 << 16)
def _read(sentence: str) -> Sentence:
    """Return what a sentence says; it is kept, since sentences come again and again."""
    reader, hits = _Reader(), list(_hits(sentence))
    for place, hit in enumerate(hits):
        following = next((h for h in hits[place + 1 :] if h.start >= hit.end and _counts(h)), None)
        if hit.kind == "cue":
            _cue(reader, hit)
            if hit.value == "or" and not reader.no and following is not None:
                before = next((h for h in hits[place - 1 :: -1] if _counts(h)), None)
                if place and before is not None and _named(before) and _named(following):
                    reader.choose()
            elif hit.value in ("comma", "and") and _begins(hits, place):
                reader.clause()
        elif hit.kind == "finding" and not reader.history:
            reader.subject()
            reader.add([hit.value], hit)
        elif hit.kind == "part":
            last = next((h for h in hits[place - 1 :: -1] if h.kind != "new"), None)
            half = place > 0 and last is not None and last.value in ("left", "right")
            _part(reader, hit._replace(kind="half") if half else hit)
        elif hit.kind == "state":
            _state(reader, hit, following)
    place_sides(reader.mentions, hits)
    said = tuple(Said(m.finding, m.status, frozenset(m.sides)) for m in reader.mentions)
    return Sentence(said, any(hit.kind in _TELLING for hit in hits))


def _counts(hit: Hit) -> bool:
    """Tell whether a phrase may part a state from what it is about."""
    return hit.kind not in ("side", "new", "all") and hit.value != "at"


def _named(hit: Hit) -> bool:
    return hit.kind == "finding" and hit.value != rules.OTHER


def _begins(hits: list[Hit], place: int) -> bool:
    """Tell whether something new begins behind a comma or "and", and no item of a list."""
    here = hits[place]
    if not any(hit.kind == "new" and hit.start == here.end for hit in hits[place + 1 :]):
        return False
    for hit in hits[place + 1 :]:
        if hit.kind == "cue" and hit.value in ("or", "stop", "with", "verb"):
            return hit.value != "or"
    return True


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
        reader.back(ABSENT, chunk=False)
    elif hit.value == "unlikely":
        reader.back(ABSENT, chunk=True)
    elif hit.value == "unsure":
        reader.back(UNCERTAIN, chunk=True)
    elif hit.value == "verb":
        reader.verb, reader.ahead = True, None
        if reader.used:
            reader.no = reader.maybe = reader.history = False
    elif hit.value == "either":
        reader.back(UNCERTAIN, chunk=True)
        reader.maybe, reader.used = True, False
    elif hit.value in ("comma", "and", "or"):
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
