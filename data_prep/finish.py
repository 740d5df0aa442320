"""From finished parts to a data set: which films stay, numbered shards, index, tables, manifest."""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import duplicates
from data_prep.parts import Outcome, Part, read_outcome
from data_prep.report import REPORT, Films, write_report
from xmae_jax.data import records
from xmae_jax.data.index import INDEX, Entry, Index, write_index
from xmae_jax.data.manifest import DataError, describe, file_digest
from xmae_jax.data.records import FINDINGS, SPLITS

REJECTED = "rejected.csv"
_NAMES = {"u": "-1"}  # of a label in the manifest, by its character in the index


@dataclass(frozen=True)
class Policy:
    """Which films of the finished parts are left out of the data set."""

    duplicates: str
    exclude: tuple[Index, ...]
    allow_other_keys: bool
    key: str  # fingerprint of this data set's


@dataclass(frozen=True)
class _Kept:
    """A part with the places of its records that stay."""

    part: Part
    outcome: Outcome
    places: tuple[int, ...]


def finish(
    output: Path,
    parts: Sequence[Part],
    *,
    refused: dict[str, str],
    policy: Policy,
    about: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write everything but the manifest into an empty folder.

    refused: what was not read, and why; about: the manifest's entries on how the data set was
    made. Returns the manifest so far, and film -> digest of its inputs. Raises DataError if no film
    is left.
    """
    outcomes = [read_outcome(part) for part in parts]
    entries = [entry for outcome in outcomes for entry in outcome.entries]
    films = [film for outcome in outcomes for film in outcome.films]
    rejected = [*refused.items()] + [pair for one in outcomes for pair in one.rejected]
    _check_ids(entries)
    out = duplicates.excluded(
        entries, policy.exclude, key=policy.key, allow_other_keys=policy.allow_other_keys
    )
    pairs = duplicates.find_pairs(entries, out)
    if policy.duplicates == "drop":
        out |= duplicates.dropped(entries, out)
    rejected += [(films[place], reason) for place, reason in out.items()]
    rejected.sort()
    write_rejected(output / REJECTED, rejected)
    if len(out) == len(entries):
        reasons = Counter(reason for _, reason in rejected).most_common(3)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        raise DataError(f"all {len(rejected)} files were rejected: {told}")
    kept = _keep(parts, outcomes, out)
    shards = _write_shards(output, about["name"], kept)
    stay = [entry for one in kept for entry in _of(one, one.outcome.entries)]
    write_index(output, stay)
    duplicates.write_pairs(output, pairs, entries, out)
    metadata = records.write_tfds_metadata(
        output, name=about["name"], files=shards, labels=len(FINDINGS), codec=about["codec"]
    )
    for table in (INDEX, duplicates.DUPLICATES):
        metadata[table] = file_digest(output / table)
    manifest = {
        **about,
        "files": shards,
        "counts": {
            **_counts(stay, rejected),
            **_licence_counts(kept),
            **_pair_counts(pairs, entries, out),
        },
        "metadata": metadata,
    }
    made = [(part.path, len(one.entries)) for part, one in zip(parts, outcomes, strict=True)]
    films = Films(entries=entries, shards=made, out=out, pairs=pairs)
    metadata[REPORT] = write_report(output, manifest, films=films)
    digests = {film: digest for one in outcomes for film, digest in one.digests.items()}
    return manifest, digests


def _check_ids(entries: Sequence[Entry]) -> None:
    if len({entry.id for entry in entries}) < len(entries):
        raise DataError("two films have one id: use another key")


def _keep(parts: Sequence[Part], outcomes: Sequence[Outcome], out: dict[int, str]) -> list[_Kept]:
    kept, start = [], 0
    for part, outcome in zip(parts, outcomes, strict=True):
        count = len(outcome.entries)
        places = tuple(i for i in range(count) if start + i not in out)
        start += count
        if places:
            kept.append(_Kept(part, outcome, places))
    return kept


def _of(kept: _Kept, things: Sequence[Any]) -> list[Any]:
    return [things[place] for place in kept.places]


def _write_shards(output: Path, name: str, kept: Sequence[_Kept]) -> list[dict[str, Any]]:
    """Number the shards of each split as TFDS does; return the manifest's entries."""
    files = []
    for split in SPLITS:
        of_split = [one for one in kept if one.part.split == split]
        for index, one in enumerate(of_split):
            final = output / records.shard_name(name, split=split, index=index, total=len(of_split))
            if file_digest(one.part.path) != one.outcome.sha256:
                raise OSError(f"{one.part.path}: not as it was written")
            if len(one.places) == len(one.outcome.entries):
                _link(one.part.path, final)
            else:
                reader = records.open_shard(one.part.path)
                records.write_shard(final, (reader.read([place])[0] for place in one.places))
            files.append(describe(final, split=split, records=len(one.places)))
    return files


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _counts(stay: Sequence[Entry], rejected: Sequence[tuple[str, str]]) -> dict[str, Any]:
    labels: dict[str, dict[str, Counter[str]]] = {}
    for entry in stay:
        of_split = labels.setdefault(entry.split, {})
        for finding, value in zip(FINDINGS, entry.labels, strict=True):
            if value != ".":
                of_split.setdefault(finding, Counter())[_NAMES.get(value, value)] += 1
    return {
        "films": len(stay),
        "rejected": len(rejected),
        "reasons": dict(Counter(reason for _, reason in rejected).most_common()),
        "splits": dict(Counter(entry.split for entry in stay)),
        "masks": dict(sorted(Counter(entry.mask_source for entry in stay).items())),
        "flags": dict(sorted(Counter(flag for e in stay for flag in e.flags.split()).items())),
        "labels": json.loads(json.dumps(labels)),
    }


def _licence_counts(kept: Sequence[_Kept]) -> dict[str, dict[str, int]]:
    """Count films by licence, and those with a given mask by the mask's; "" is not known."""
    films: Counter[str] = Counter()
    masks: Counter[str] = Counter()
    for one in kept:
        rows = {job.film: job.row for job in one.part.jobs}
        pairs = zip(_of(one, one.outcome.films), _of(one, one.outcome.entries), strict=True)
        for film, entry in pairs:
            films[rows[film].licence] += 1
            if entry.mask_source.startswith("given:"):
                masks[rows[film].mask_licence] += 1
    return {"licences": dict(sorted(films.items())), "mask_licences": dict(sorted(masks.items()))}


def _pair_counts(
    pairs: Sequence[tuple[str, duplicates.Pair]], entries: Sequence[Entry], out: dict[int, str]
) -> dict[str, Any]:
    left = [(kind, a, b) for kind, (a, b, _) in pairs if a not in out and b not in out]
    across = Counter(kind for kind, a, b in left if entries[a].split != entries[b].split)
    return {
        "duplicates": dict(Counter(kind for kind, *_ in left)),
        "duplicates_across_splits": dict(across),
    }


def write_rejected(path: Path, rejected: Sequence[tuple[str, str]]) -> None:
    """Write file and reason, for the owner: it is the one table that names input files."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *rejected])
