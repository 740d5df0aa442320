"""`report.html`: what a data set holds, what was left out and what to look at, for a reader.

One file with its pictures in it, no script, nothing fetched. Films go by their ids: no file name,
no path, no raw id and nothing of a report's text stands in it. Nor does a time: the same inputs
give the same bytes.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_prep import report_numbers as numbers
from data_prep.duplicates import Pair
from data_prep.pictures import (
    Shards,
    caption,
    data_uri,
    drawn,
    has_writing,
    outlined,
    read_places,
    short,
    worst,
)
from data_prep.report_numbers import Measures, percent
from xmae_jax.data.film import FLAGS
from xmae_jax.data.index import NEAR, Entry
from xmae_jax.data.manifest import file_digest

REPORT = "report.html"
_SIDE = 192  # px of a picture
_RANDOM, _WORST, _BARE, _PAIRS = 64, 24, 16, 12  # films and pairs shown at most
_GROUPS, _EACH = 8, 7  # flags, and likewise reasons, with pictures, and films shown of each
_MEASURED = 64  # films drawn for the charts of grey values, lungs and spacing


@dataclass(frozen=True)
class Films:
    """The films of a build: those that stay and those that were left out again."""

    entries: Sequence[Entry]  # in the order of the records
    shards: Shards  # that hold the records of both
    out: Mapping[int, str]  # place -> reason
    pairs: Sequence[tuple[str, Pair]]  # of copies

    @property
    def places(self) -> list[int]:
        """The places of the films that stay."""
        return [place for place in range(len(self.entries)) if place not in self.out]


@dataclass(frozen=True)
class Tile:
    """A film as it is shown."""

    id: str
    picture: str  # an address that holds it
    caption: str


@dataclass(frozen=True)
class Group:
    """A name, how many films it is about, and some of them."""

    name: str
    gloss: str
    count: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class _Shown:
    """Places of the films that are shown, by section."""

    random: list[int]
    worst: list[int]
    bare: list[int]
    pairs: list[tuple[str, Pair]]
    flagged: dict[str, list[int]]
    left_out: dict[str, list[int]]

    def all(self) -> set[int]:
        groups = [self.random, self.worst, self.bare, *self.flagged.values()]
        groups += [*self.left_out.values(), *(pair[:2] for _, pair in self.pairs)]
        return {place for group in groups for place in group}


def write_report(directory: Path, manifest: Mapping[str, Any], *, films: Films) -> str:
    """Write `report.html` into a data set, given all of its manifest but the report's own hash.

    Returns its sha256. Reads only the records that it shows or measures.
    """
    stay = films.places
    entries = [films.entries[place] for place in stay]
    counts = manifest["counts"]
    covered = _covered(films)
    shown = _choose(films, stay)
    measured = drawn(films.entries, stay, number=_MEASURED)
    tiles, measures = _look(films, shown=shown.all(), measured=set(measured), covered=covered)

    def section(places: Iterable[int]) -> tuple[Tile, ...]:
        return tuple(tiles[place] for place in places)

    text = _template().render(
        name=manifest["name"],
        size=manifest["size"],
        counts=counts,
        near=NEAR,
        made=numbers.made(manifest),
        splits=numbers.splits(entries),
        people=numbers.people(entries),
        remarks=numbers.remarks(entries, counts) + list(manifest.get("notes", ())),
        bars=numbers.all_bars(entries),
        histograms=numbers.histograms(entries, measures),
        findings=numbers.findings(counts),
        reasons=[
            Group(short(reason, length=90), "", count, section(shown.left_out.get(reason, ())))
            for reason, count in counts["reasons"].items()
        ],
        flags=[
            Group(flag, FLAGS[flag], count, section(shown.flagged.get(flag, ())))
            for flag, count in counts["flags"].items()
        ],
        pairs=[(_told(films, kind, pair), section(pair[:2])) for kind, pair in shown.pairs],
        random=section(shown.random),
        worst=section(shown.worst),
        bare=section(shown.bare),
    )
    path = directory / REPORT
    path.write_text(text, encoding="utf-8")
    return file_digest(path)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["percent"] = percent
    environment.filters["tick"] = lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
    return environment.get_template(REPORT)


def _choose(films: Films, stay: Sequence[int]) -> _Shown:
    """Choose the films to show of each section."""
    entries = films.entries
    flagged: dict[str, list[int]] = {}
    for place in stay:
        for flag in entries[place].flags.split():
            flagged.setdefault(flag, []).append(place)
    left_out: dict[str, list[int]] = {}
    for place, reason in films.out.items():
        left_out.setdefault(reason, []).append(place)
    bare = [place for place in stay if entries[place].mask_source == "none"]

    def some(groups: dict[str, list[int]]) -> dict[str, list[int]]:
        often = heapq.nsmallest(_GROUPS, groups, key=lambda name: (-len(groups[name]), name))
        return {name: drawn(entries, groups[name], number=_EACH) for name in often}

    def order(pair: tuple[str, Pair]) -> tuple:
        kind, (a, b, bits) = pair
        kept = a not in films.out and b not in films.out
        across = entries[a].split != entries[b].split
        return not (kept and across), not kept, bits, kind, a, b

    return _Shown(
        random=drawn(entries, stay, number=_RANDOM),
        worst=worst(entries, stay, number=_WORST),
        bare=drawn(entries, bare, number=_BARE),
        pairs=heapq.nsmallest(_PAIRS, films.pairs, key=order),
        flagged=some(flagged),
        left_out=some(left_out),
    )


def _look(
    films: Films, *, shown: set[int], measured: set[int], covered: set[int]
) -> tuple[dict[int, Tile], Measures]:
    """Read the records that are wanted, each once."""
    tiles: dict[int, Tile] = {}
    measures = Measures()
    for place, record in read_places(films.shards, shown | measured):
        entry = films.entries[place]
        if place in shown:
            picture = outlined(record, side=_SIDE, coarse=place in covered)
            tiles[place] = Tile(entry.id, data_uri(picture), " · ".join(caption(entry)))
        if place in measured:
            measures.add(record)
    return tiles, measures


def _covered(films: Films) -> set[int]:
    """Find the films to be blurred: those with text in them, and their copies."""
    covered: set[int] = set()
    found = {place for place, entry in enumerate(films.entries) if has_writing(entry)}
    while found - covered:
        covered |= found
        for _, (first, second, _) in films.pairs:
            if first in covered or second in covered:
                found |= {first, second}
    return covered


def _told(films: Films, kind: str, pair: Pair) -> str:
    """Say of a pair what it is and where it stands."""
    first, second, bits = pair
    splits = films.entries[first].split, films.entries[second].split
    where = f"both in {splits[0]}" if splits[0] == splits[1] else f"{splits[0]} and {splits[1]}"
    alike = "the same picture" if kind == "copy" else f"nearly the same picture ({bits} bits)"
    gone = [films.entries[place].id for place in (first, second) if place in films.out]
    return f"{alike}, {where}" + (f"; left out: {gone[0]}" if gone else "")
