"""A line for each record of a data set: `index.csv`, by which films are compared across sets.

Its lines stand in the order of the splits, their shards and the records in them. The identity of a
film, `pixels`, is sha256 over its decoded pixels: it needs no key, so copies are found in sets of
whatever key. Near copies are found by a perceptual hash (ImageHash's `phash`: the signs of the 256
lowest cosine coefficients about their median).
"""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from jaxtyping import Bool, UInt8, UInt64
from PIL import Image

from xmae_jax.data.manifest import DataError, file_digest, load_manifest

INDEX = "index.csv"
NEAR = 12
"""Bits of 256 in which two pictures of one film differ at most.

Of 186 real films, copies saved as JPEG of quality 20 and up, halved, shrunk to 224 px or with noise
differ by 10 at most, copies of changed contrast by 12 for nine in ten; films of one patient by 34
and more, of two patients by 54 and more; 1,000 phantoms by 16 and more.
"""
_BLOCK = 512  # rows compared at once: bounds the memory of `near_pairs`


class Entry(NamedTuple):
    """One record's line; every field is text that was allowed for, a number or a keyed hash."""

    id: str
    patient: str
    study: str
    split: str
    source: str
    view: str
    pixels: str  # sha256 over shape and pixels, hex
    phash: str  # 64 hex digits
    kind: str  # "PNG", "JPEG", "TIFF", "DICOM ..." with its transfer syntax
    bits: int
    vendor: str
    height: int
    width: int
    mask_source: str
    mask_quality: float
    flags: str  # words, a blank between them


@dataclass(frozen=True)
class Index:
    """The films of one split of a data set, as far as they are compared."""

    name: str  # of the data set and split, for messages
    key: str  # fingerprint of the key of its ids
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: UInt64[np.ndarray, "n 4"]


def pixel_digest(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """Name a film by what it shows: sha256 over its shape and decoded pixels."""
    whole = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
    whole.update(pixels.tobytes())
    return whole.hexdigest()


def perceptual_hash(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """Hash what a film looks like into 64 hex digits."""
    image = Image.fromarray(pixels)
    factor = min(pixels.shape) // 256
    if factor > 1:  # the hash looks at 64 x 64 pixels: most of the film is averaged away first
        image = image.reduce(factor)
    return str(imagehash.phash(image, hash_size=16))


def write_index(directory: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Write `index.csv`."""
    with (Path(directory) / INDEX).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Entry._fields)
        writer.writerows(entries)


def read_entries(directory: str | os.PathLike) -> list[Entry]:
    """Read `index.csv`; DataError where it is not what the manifest says."""
    path = Path(directory) / INDEX
    manifest = load_manifest(directory)
    if not path.is_file() or file_digest(path) != manifest["metadata"].get(INDEX):
        raise DataError(f"{path}: missing, or not the file that the manifest names")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if next(lines) != list(Entry._fields):
            raise DataError(f"{path}: columns of another version")
        return [_entry(line) for line in lines]


def _entry(line: list[str]) -> Entry:
    made = Entry._make(line)
    numbers = {name: int(getattr(made, name)) for name in ("bits", "height", "width")}
    return made._replace(mask_quality=float(made.mask_quality), **numbers)


def read_index(directory: str | os.PathLike) -> dict[str, Index]:
    """Read the index of each split of a data set."""
    key = load_manifest(directory).get("arguments", {}).get("key_fingerprint", "")
    by_split: dict[str, list[Entry]] = {}
    for entry in read_entries(directory):
        by_split.setdefault(entry.split, []).append(entry)
    return {
        split: index_of(entries, name=f"{directory} ({split})", key=key)
        for split, entries in by_split.items()
    }


def index_of(entries: Sequence[Entry], *, name: str, key: str) -> Index:
    """Make an index of entries."""
    packed = b"".join(bytes.fromhex(entry.phash) for entry in entries)
    return Index(
        name=name,
        key=key,
        ids=tuple(entry.id for entry in entries),
        patients=tuple(entry.patient for entry in entries),
        pixels=tuple(entry.pixels for entry in entries),
        hashes=np.frombuffer(packed, np.uint64).reshape(-1, 4),
    )


def near_pairs(
    first: UInt64[np.ndarray, "n 4"], second: UInt64[np.ndarray, "m 4"] | None = None
) -> list[tuple[int, int, int]]:
    """Return (i, j, bits that differ) of all pairs within NEAR; i < j within one set.

    Compares all with all, about 0.4e9 pairs a second and core: 15 s for 100,000 films.
    """
    other = first if second is None else second
    pairs = []
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        skip = start if second is None else 0
        rest = other[skip:]
        # Most pairs differ by more than that in the first quarter already.
        i, j = np.nonzero(_close(block[:, None, 0], rest[None, :, 0]))
        bits = np.bitwise_count(block[i] ^ rest[j]).sum(1)
        for a, b, n in zip(i + start, j + skip, bits, strict=True):
            if n <= NEAR and (second is not None or a < b):
                pairs.append((int(a), int(b), int(n)))
    return pairs


def _close(a: UInt64[np.ndarray, "n 1"], b: UInt64[np.ndarray, "1 m"]) -> Bool[np.ndarray, "n m"]:
    return np.bitwise_count(a ^ b) <= NEAR
