"""What a data set is to hold: `manifest.json` binds every file to its size, hash and records.

ArrayRecord detects a damaged record when it is read; the manifest tells of a missing, stale,
swapped or doubled shard before anything is read, and its own digest tells of damage to itself.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from xmae_jax.seal import json_digest, seal, unseal

FORMAT = 4  # of manifest.json and of the record; raised when an old reader would misread a new one
MANIFEST = "manifest.json"
HEAD = 64 * 1024  # bytes: tells shards apart, since the first record's id lies in them
_NAMED = 3  # files that a message names; of more it tells the number


class DataError(Exception):
    """Bad data on disk; the message names the file, and main exits 65."""


def file_digest(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(HEAD)).hexdigest()


def describe(path: str | os.PathLike, *, split: str, records: int) -> dict[str, Any]:
    """Make the manifest's entry for a finished shard."""
    path = Path(path)
    return dict(
        file=path.name,
        split=split,
        bytes=path.stat().st_size,
        head=_head_digest(path),
        sha256=file_digest(path),
        records=records,
    )


def write_manifest(directory: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`.

    It needs `files` (entries of `describe`), `labels`, `size` and `metadata` (file -> sha256);
    whatever else is given is stored too. Write it last: a directory without it is not finished.
    """
    manifest = seal({"format": FORMAT, **manifest})
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    (Path(directory) / MANIFEST).write_text(text + "\n", encoding="utf-8")


def load_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Read `manifest.json`; raise DataError naming it if it is missing, damaged or outdated."""
    path = Path(directory) / MANIFEST
    if not path.is_file():  # opening a pipe would block
        raise DataError(f"{path}: no manifest, so this is no finished data set")
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: unreadable manifest ({type(error).__name__})") from None
    if version in (1, 2, 3):
        raise DataError(f"{path}: written by an older version; run data_prep.build again")
    if version != FORMAT:
        raise DataError(f"{path}: format {version!r}, but this code reads format {FORMAT}")
    try:
        manifest = unseal(text)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return manifest


def film_format(directory: str | os.PathLike) -> dict[str, Any]:
    """Return how films became squares in a data set: `size`, and `fit` and `codec` if it tells."""
    manifest = load_manifest(directory)
    return {name: manifest[name] for name in ("size", "fit", "codec") if name in manifest}


def data_set(directory: str | os.PathLike, *, split: str) -> dict[str, Any]:
    """Return what a run that reads a split keeps of a data set: name, digests, licences.

    digest: of the manifest; records: of the split's shards, as in `Records.digest`; splits,
    licences, mask_licences: films of each.
    """
    manifest = load_manifest(directory)
    counts = manifest.get("counts", {})
    return dict(
        name=manifest.get("name", Path(directory).name),
        digest=file_digest(Path(directory) / MANIFEST),
        records=json_digest([entry for entry in manifest["files"] if entry["split"] == split]),
        **{key: dict(counts.get(key, {})) for key in ("splits", "licences", "mask_licences")},
    )


def compare(directory: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """Compare the shards there are with the manifest; return file -> what is wrong with it.

    Costs one listing of the directory, and a stat and the first 64 KiB of each shard.
    """
    wrong: dict[str, str] = {}
    listed: set[str] = set()
    of_digest: dict[str, str] = {}
    for entry in manifest["files"]:
        name = entry["file"]
        first = of_digest.setdefault(entry["sha256"], name)
        if name in listed:
            wrong[name] = "is listed twice"
        elif first != name:
            wrong[name] = f"has the same contents as {first}"
        elif problem := _check_shard(directory / name, entry):
            wrong[name] = problem
        listed.add(name)
    for path in sorted(directory.glob("*.array_record*")):
        if path.name not in listed:
            wrong[path.name] = "is not in the manifest"
    return wrong


def _check_shard(path: Path, entry: dict[str, Any]) -> str | None:
    expected = f"the manifest says {entry['bytes']} bytes"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            return "is no plain file"
        if status.st_size != entry["bytes"]:
            return f"has {status.st_size} bytes, {expected}"
        if _head_digest(path) != entry["head"]:
            return f"does not begin as the manifest says (sha256 of its first {HEAD} bytes)"
    except FileNotFoundError:
        return f"is missing, {expected}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def check(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError naming the first shards that `compare` finds wrong."""
    wrong = compare(directory, manifest)
    if wrong:
        told = "; ".join(f"{directory / name}: {why}" for name, why in [*wrong.items()][:_NAMED])
        more = f"; {len(wrong)} files are wrong in all" if len(wrong) > _NAMED else ""
        raise DataError(told + more)
