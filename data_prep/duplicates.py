"""Copies and near copies of films within a data set, and films that others have already."""

import csv
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from xmae_jax.data.index import Entry, Index, index_of, near_pairs
from xmae_jax.data.leaks import find_leaks, other_keys
from xmae_jax.data.manifest import DataError

DUPLICATES = "duplicates.csv"
POLICIES = ("keep", "drop")
Pair = tuple[int, int, int]  # earlier film, later film, bits in which their hashes differ


def find_pairs(entries: Sequence[Entry], out: Container[int] = ()) -> list[tuple[str, Pair]]:
    """List copies ("copy": the same pixels) and near copies ("near copy") within a data set.

    Every film that has an earlier copy stands in one pair at least. out: places to leave out.
    """
    places = [place for place in range(len(entries)) if place not in out]
    index = index_of([entries[place] for place in places], name="", key="")
    first: dict[str, int] = {}
    pairs: list[tuple[str, Pair]] = []
    for place, pixels in zip(places, index.pixels, strict=True):
        earlier = first.setdefault(pixels, place)
        if earlier != place:
            pairs.append(("copy", (earlier, place, 0)))
    # Of copies the first stands for all.
    firsts = np.flatnonzero([first[pixels] == place for place, pixels in
                             zip(places, index.pixels, strict=True)])  # fmt: skip
    for a, b, bits in near_pairs(index.hashes[firsts]):
        pairs.append(("near copy", (places[firsts[a]], places[firsts[b]], bits)))
    return pairs


def dropped(entries: Sequence[Entry], out: Container[int]) -> dict[int, str]:
    """Choose the films to leave out, beside `out`, so that no pair is left; return place -> reason.

    The later one goes, but of a pair across splits the one of the earlier split (train, val, test):
    what is evaluated stays. With it go all films of its patient in that split, since a copy under
    another id tells that two patients are one.
    """
    gone: dict[int, str] = {}
    by_patient: dict[tuple[str, str], list[int]] = {}
    for place, entry in enumerate(entries):
        by_patient.setdefault((entry.patient, entry.split), []).append(place)
    left = {place for place in range(len(entries)) if place not in out}
    # Leaving films out brings up pairs that their better ones had hidden.
    while pairs := find_pairs(entries, set(range(len(entries))) - left):
        for kind, (a, b, _) in pairs:
            if a not in left or b not in left:
                continue
            goes, stays = (a, b) if entries[a].split != entries[b].split else (b, a)
            gone[goes] = f"{kind} of another film"
            if entries[goes].split != entries[stays].split:
                for other in by_patient[entries[goes].patient, entries[goes].split]:
                    if other in left:
                        gone.setdefault(other, f"patient with a {kind} in another split")
            left -= gone.keys()
    return gone


def excluded(
    entries: Sequence[Entry], sets: Sequence[Index], *, key: str, allow_other_keys: bool
) -> dict[int, str]:
    """Find films that other sets hold too, by patient, copy or near copy; return place -> reason.

    All films of a patient go with one that is a copy. Raises DataError if ids of patients cannot be
    compared, their keys being different.
    """
    if not allow_other_keys:
        check_keys(sets, key)
    own = index_of(entries, name="this data set", key=key)
    place = {film: i for i, film in enumerate(own.ids)}
    found = {place[leak.ids[1]]: leak.kind for leak in reversed(find_leaks(sets, [own]))}
    patients = {entries[i].patient for i in found}
    out = {i: f"excluded: {kind} in another data set" for i, kind in found.items()}
    for i, entry in enumerate(entries):
        if entry.patient in patients:
            out.setdefault(i, "excluded: patient with a copy in another data set")
    return out


def check_keys(sets: Sequence[Index], key: str) -> None:
    """Raise DataError if ids of other sets were made with another key than this."""
    told = other_keys([index_of([], name="this data set", key=key), *sets])
    if told:
        raise DataError(f"{told}; build with the same --key, or compare films only by"
                        " --allow-other-keys")  # fmt: skip


def write_pairs(
    directory: Path,
    pairs: Sequence[tuple[str, Pair]],
    entries: Sequence[Entry],
    out: Container[int],
) -> None:
    """Write duplicates.csv: ids and splits of each pair, and which of them was dropped."""
    with (directory / DUPLICATES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "bits", "id", "split", "other_id", "other_split", "dropped"))
        for kind, (a, b, bits) in pairs:
            gone = next((entries[i].id for i in (a, b) if i in out), "")
            first, second = entries[a], entries[b]
            row = (kind, bits, first.id, first.split, second.id, second.split, gone)
            writer.writerow(row)
