"""Check every byte of a data set: is each file, and each record in it, as it was written?

    python -m data_prep.verify --data DIR

compares the files of DIR with its manifest (as a run does when it starts, and by sha256), and
reads every record: it must parse, its pictures decode, its split be its shard's, and its id be
unique and, with its patient's, that of its line in index.csv. Prints a report as JSON: `ok`,
`files`, `records` (those that are well) and `problems` (file; record, or null where it is the whole
file; problem).

Exit codes: 0 all is well, 64 usage, 65 bad data.
"""

import json
import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from data_prep.arguments import BAD_DATA, INTERRUPTED, USAGE, Parser, UsageError
from data_prep.inputs import sha256_of
from xmae_jax.data.index import INDEX, read_entries
from xmae_jax.data.manifest import MANIFEST, DataError, compare, load_manifest
from xmae_jax.data.records import decode, decode_image, decode_mask, open_shard

Problem = tuple[str, int | None, str]  # file, record, problem
Who = tuple[str, str]  # ids of a film and of its patient


def verify(directory: Path) -> dict[str, Any]:
    """Check a data set; return the report."""
    try:
        manifest = load_manifest(directory)
    except DataError as error:
        return _report([(MANIFEST, None, str(error))], files=0, records=0)
    wrong = compare(directory, manifest)
    problems: list[Problem] = [(name, None, why) for name, why in wrong.items()]
    for name, digest in manifest["metadata"].items():
        if not (directory / name).is_file():
            problems.append((name, None, "is missing"))
        elif sha256_of(directory / name) != digest:
            problems.append((name, None, "its sha256 is not the manifest's"))

    def check(entry: dict[str, Any]) -> tuple[list[Problem], dict[int, Who], int]:
        path = directory / entry["file"]
        found: list[Problem] = []
        if not path.is_file():
            return found, {}, entry["records"]
        if entry["file"] not in wrong and sha256_of(path) != entry["sha256"]:
            found.append((entry["file"], None, "its sha256 is not the manifest's"))
        damaged, films, count = _read(path, entry, size=manifest["size"])
        return found + damaged, films, count

    seen: dict[str, str] = {}  # id -> where it was first
    records = start = 0
    listed, unread = _listed(directory)
    if not any(file == INDEX for file, _, _ in problems):
        problems += unread
    with ThreadPool(os.cpu_count()) as pool:
        for entry, (found, films, count) in zip(
            manifest["files"], pool.imap(check, manifest["files"]), strict=True
        ):
            problems += found
            records += len(films)
            for position, (name, _) in films.items():
                where = f"{entry['file']}, record {position}"
                first = seen.setdefault(name, where)
                if first != where:
                    problems.append((entry["file"], position, f"has the id of {first}"))
            lines = listed[start : start + count]
            problems += _unlisted(entry["file"], films, lines) if listed else []
            start += count
    if listed and len(listed) != start:
        text = f"has {len(listed)} lines of films, the shards have {start} records"
        problems.append((INDEX, None, text))
    return _report(problems, files=len(manifest["files"]), records=records)


def _report(problems: list[Problem], *, files: int, records: int) -> dict[str, Any]:
    listed = [dict(file=file, record=record, problem=text) for file, record, text in problems]
    return {"ok": not listed, "files": files, "records": records, "problems": listed}


def _listed(directory: Path) -> tuple[list[Who], list[Problem]]:
    """Read the films of index.csv, or what is wrong with it."""
    try:
        return [(entry.id, entry.patient) for entry in read_entries(directory)], []
    except DataError as error:
        return [], [(INDEX, None, str(error))]
    except ValueError:
        return [], [(INDEX, None, "a cell is no number")]


def _unlisted(file: str, films: dict[int, Who], lines: Sequence[Who]) -> list[Problem]:
    """Tell of records whose ids are not those of their lines in index.csv."""
    return [
        (file, position, f"is not the film of its line in {INDEX}")
        for position, film in films.items()
        if lines[position : position + 1] != [film]
    ]


def _read(
    path: Path, entry: dict[str, Any], *, size: int
) -> tuple[list[Problem], dict[int, Who], int]:
    """Read every record of a shard.

    Returns what is wrong, place -> film of the others, and how many there are.
    """
    problems: list[Problem] = []
    films: dict[int, Who] = {}
    try:
        reader = open_shard(path)
        count = reader.num_records()
    except Exception as error:  # the reader raises several kinds
        return [(path.name, None, f"cannot be opened ({error})")], films, entry["records"]
    if count != entry["records"]:
        text = f"has {count} records, the manifest says {entry['records']}"
        problems.append((path.name, None, text))
    for position in range(count):
        try:
            record = decode(reader.read([position])[0])
            shape = decode_image(record["image"]).shape if size else (0, 0)
            if not size and record["image"]:
                raise DataError("has a film, in a data set of reports alone")
            for mask in (record["lung_mask"], record["lung_hull"]):
                if mask is not None:
                    decode_mask(mask)
            if shape != (size, size):
                raise DataError(f"its film has {shape[0]} x {shape[1]} pixels, not {size}")
            if record["split"] != entry["split"]:
                raise DataError(f"is of another split than {entry['split']}")
        except Exception as error:  # the reader and the parser raise several kinds
            problems.append((path.name, position, f"is damaged ({error})"))
        else:
            films[position] = record["id"], record["patient"]
    return problems, films, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser(prog="python -m data_prep.verify", description="check shards")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    try:
        directory = parser.parse_args(arguments).data
        if not directory.is_dir():
            raise UsageError(f"--data {directory}: no such folder")
        report = verify(directory)
    except UsageError as error:
        print(f"data_prep.verify: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(report, indent=1))
    return 0 if report["ok"] else BAD_DATA


if __name__ == "__main__":
    sys.exit(main())
