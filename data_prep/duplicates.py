"""Copies and near copies of films within a data set, and films that others have already."""

import csv
from collections.abc import Container, Sequence
from pathlib import Path

from xmae_jax.data.index import Entry, Index, index_of, near_pairs
from xmae_jax.data.leaks import find_leaks, other_keys
from xmae_jax.data.manifest import DataError

DUPLICATES = "duplicates.csv"
POLICIES = ("keep", "drop")
Pair = tuple[int, int, int]  # earlier film, later film, bits in which their hashes differ


def find_pairs(entries: Sequence[Entry]) -> list[tuple[str, Pair]]:
    """List copies ("copy": the same pixels) and near copies ("near copy") within a data set."""
    index = index_of(entries, name="", key="")
    first: dict[str, int] = {}
    pairs: list[tuple[str, Pair]] = []
    for i, pixels in enumerate(index.pixels):
        earlier = first.setdefault(pixels, i)
        if earlier != i:
            pairs.append(("copy", (earlier, i, 0)))
    # Of copies the first stands for all: else 100 films of black would be 4,950 near copies.
    firsts = list(first.values())
    for a, b, bits in near_pairs(index.hashes[firsts]):
        pairs.append(("near copy", (firsts[a], firsts[b], bits)))
    return pairs


def dropped(pairs: Sequence[tuple[str, Pair]], entries: Sequence[Entry]) -> dict[int, str]:
    """Choose the films to leave out so that no pair is left; return place -> reason.

    The later one goes, but of a pair across splits the one of the earlier split (train, val, test):
    what is evaluated stays.
    """
    out: dict[int, str] = {}
    for kind, (a, b, _) in pairs:
        if a not in out and b not in out:
            goes = a if entries[a].split != entries[b].split else b
            out[goes] = f"{kind} of another film"
    return out


def excluded(
    entries: Sequence[Entry], sets: Sequence[Index], *, key: str, allow_other_keys: bool
) -> dict[int, str]:
    """Find films that other sets hold too, by patient, copy or near copy; return place -> reason.

    Raises DataError if ids of patients cannot be compared, their keys being different.
    """
    own = index_of(entries, name="this data set", key=key)
    told = other_keys([own, *sets])
    if told and not allow_other_keys:
        raise DataError(f"{told}; build with the same --key, or compare films only by"
                        " --allow-other-keys")  # fmt: skip
    place = {film: i for i, film in enumerate(own.ids)}
    leaks = find_leaks(sets, [own])
    return {place[leak.ids[1]]: f"excluded: {leak.kind} in another data set" for leak in leaks}


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
