"""A line for each record of a data set: `index.csv`, by which films are compared across sets.

Its lines stand in the order of the splits, their shards and the records in them. The identity of a
film, `pixels`, is sha256 over its decoded pixels: it needs no key, so copies are found in sets of
whatever key. Near copies are found by a perceptual hash (ImageHash's `phash`: the signs of the 256
lowest cosine coefficients about their median) of the film without flat edges, its grey levels
equalised, so that neither padding nor exposure matters; the complement of a hash is that of the
inverted film.
"""

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from jaxtyping import Float32, UInt8, UInt64
from PIL import Image

from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.manifest import DataError, file_digest, load_manifest
from xmae_jax.data.text_marks import shrunk

INDEX = "index.csv"
NEAR = 20
"""Bits of 256 in which two pictures of one film, or their inverse, differ at most.

Measured on 186 real films. Of copies of each, so many are found: saved as JPEG of quality 20, or
inverted, 99.5 %; shrunk to 224 x 224 px, gamma 1.4, equalised, padded to a square or with noise,
all; gamma 0.6 98 %, 20 % more contrast 97 %; but CLAHE 30 %, 1 % cropped on each side 54 %, and
turned, mirrored or cropped further none. Films of two patients differ by 54 and more, of one
patient by 50 (32 among 597 of 64 px), 1,000 phantoms by 28.
"""
LONG = 40
"""Words from which on a report of another patient is seldom the same word for word.

Of the Indiana reports 30 of 938 of that length and 194 of 1,605 from 30 words on, all of one
patient each, have a double.
"""
REPORT = "report"
"""`Entry.kind` of a report without a film."""
_ROWS, _COLUMNS = 512, 8192  # compared at once: bounds the memory of `near_pairs`
_CHARACTERS = {1.0: "1", 0.0: "0", -1.0: "u"}
_VALUES = np.full(256, np.nan, np.float32)  # of a label by its character
_VALUES[[ord(name) for name in _CHARACTERS.values()]] = [*_CHARACTERS]
_FLAT = 10  # grey levels that an edge without film has at most


class Entry(NamedTuple):
    """One record's line; every field is text that was allowed for, a number or a keyed hash."""

    id: str
    patient: str
    study: str
    split: str
    source: str
    view: str
    sex: str  # "F", "M", or empty if unknown
    age: float  # years, 90 above 89; NaN if unknown, an empty cell
    labels: str  # a character a finding, in their order: 1, 0, u (uncertain) or . (unknown)
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
    text: str = ""  # keyed hash of its report, if that is LONG; else, and in older sets, empty


@dataclass(frozen=True)
class Index:
    """The films of one split of a data set, as far as they are compared."""

    name: str  # of the data set and split, for messages
    key: str  # fingerprint of the key of its ids
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: UInt64[np.ndarray, "n 4"]
    texts: frozenset[str] = frozenset()  # `Entry.text` of films
    texts_alone: frozenset[str] = frozenset()  # and of reports without films


def pixel_digest(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """Name a film by what it shows: sha256 over its shape and decoded pixels."""
    whole = hashlib.sha256(f"{pixels.shape[0]} {pixels.shape[1]}\n".encode())
    whole.update(pixels.tobytes())
    return whole.hexdigest()


def perceptual_hash(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """Hash what a film looks like into 64 hex digits."""
    pixels = shrunk(pixels, min(pixels.shape) // 256)  # the hash looks at 64 x 64 pixels
    top, bottom = _edges(pixels[:, ::4])
    left, right = _edges(pixels[::4].T)
    small = cv2.resize(pixels[top:bottom, left:right], (64, 64), interpolation=cv2.INTER_AREA)
    return str(imagehash.phash(Image.fromarray(cv2.equalizeHist(small)), hash_size=16))


def _edges(pixels: UInt8[np.ndarray, "h w"]) -> tuple[int, int]:
    """Return where rows that are not flat begin and end; all rows if few are left."""
    cut = pixels.shape[1] // 50  # 2 % at each end
    ordered = np.partition(pixels, (cut, pixels.shape[1] - 1 - cut), axis=1)
    film = np.flatnonzero(ordered[:, -1 - cut] - ordered[:, cut] > _FLAT)
    if len(film) <= len(pixels) // 4:
        return 0, len(pixels)
    return int(film[0]), int(film[-1]) + 1


def write_index(directory: str | os.PathLike, entries: Iterable[Entry]) -> None:
    """Write `index.csv`."""
    with (Path(directory) / INDEX).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Entry._fields)
        for entry in entries:
            writer.writerow(entry._replace(age="" if math.isnan(entry.age) else entry.age))


def read_entries(directory: str | os.PathLike) -> list[Entry]:
    """Read `index.csv`; DataError where it is not what the manifest says."""
    path = Path(directory) / INDEX
    manifest = load_manifest(directory)
    if not path.is_file() or file_digest(path) != manifest["metadata"].get(INDEX):
        raise DataError(f"{path}: missing, or not the file that the manifest names")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if next(lines) not in (list(Entry._fields), list(Entry._fields[:-1])):  # older: no text
            raise DataError(f"{path}: columns of another version")
        return [_entry(line) for line in lines]


def _entry(line: list[str]) -> Entry:
    made = Entry(*line)
    numbers = {name: int(getattr(made, name)) for name in ("bits", "height", "width")}
    age = float(made.age) if made.age else math.nan
    return made._replace(mask_quality=float(made.mask_quality), age=age, **numbers)


def label_text(labels: Iterable[float]) -> str:
    """Write labels, a character each: `1`, `0`, `u` for -1 (uncertain), `.` for NaN (unknown)."""
    return "".join("." if math.isnan(value) else _CHARACTERS[value] for value in labels)


def label_matrix(entries: Sequence[Entry]) -> Float32[np.ndarray, "n c"]:
    """Read the labels of entries as records hold them: 1, 0, -1 (uncertain) or NaN (unknown)."""
    text = "".join(entry.labels for entry in entries)
    return _VALUES[np.frombuffer(text.encode(), np.uint8)].reshape(len(entries), len(FINDINGS))


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
    texts = [{e.text for e in entries if e.text and (e.kind == REPORT) == alone}
             for alone in (False, True)]  # fmt: skip
    packed = b"".join(bytes.fromhex(entry.phash) for entry in entries)
    return Index(
        name=name,
        key=key,
        ids=tuple(entry.id for entry in entries),
        patients=tuple(entry.patient for entry in entries),
        pixels=tuple(entry.pixels for entry in entries),
        hashes=np.frombuffer(packed, np.uint64).reshape(-1, 4),
        texts=frozenset(texts[0]),
        texts_alone=frozenset(texts[1]),
    )


def near_pairs(
    first: UInt64[np.ndarray, "n 4"], second: UInt64[np.ndarray, "m 4"] | None = None
) -> list[tuple[int, int, int]]:
    """Return (i, j, bits that differ) for each j that has a pair within NEAR: its nearest i.

    Within one set i < j. Compares all with all, about 0.3e9 pairs a second and core: 20 s for
    100,000 films.
    """
    other = first if second is None else second
    best: dict[int, tuple[int, int]] = {}  # j -> bits, i
    for top in range(0, len(first), _ROWS):
        rows = first[top : top + _ROWS]
        for left in range(top if second is None else 0, len(other), _COLUMNS):
            columns = other[left : left + _COLUMNS]
            # Most pairs differ by more than that in the first quarter already.
            i, j = np.nonzero(_apart(rows[:, None, 0] ^ columns[None, :, 0], 64) <= NEAR)
            bits = np.bitwise_count(rows[i] ^ columns[j]).sum(1, dtype=np.int64)
            bits = np.minimum(bits, 256 - bits)
            near = bits <= NEAR
            for a, b, n in zip(i[near] + top, j[near] + left, bits[near], strict=True):
                if second is not None or a < b:
                    best[int(b)] = min(best.get(int(b), (257, 0)), (int(n), int(a)))
    return [(i, j, bits) for j, (bits, i) in sorted(best.items())]


def _apart(bits: UInt64[np.ndarray, "n m"], size: int) -> UInt8[np.ndarray, "n m"]:
    """Count the bits that are set, or those that are not if they are fewer."""
    count = np.bitwise_count(bits)
    return np.minimum(count, np.uint8(size) - count)
