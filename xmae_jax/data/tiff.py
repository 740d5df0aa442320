"""The first directory of a TIFF file or EXIF block, read within limits.

Pillow reads every entry of a directory into memory, whatever size it claims; ten thousand
entries may all point at the same hundred megabytes.
"""

import struct
from dataclasses import dataclass

from xmae_jax.data.limits import FilmError

WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 262, 274
TILE_WIDTH, TILE_HEIGHT = 322, 323

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF
_BELOW = (34665, 34853, 40965)  # directories of EXIF, GPS and interoperability
_MAX_ENTRIES = 512
_MAX_VALUES = 32 << 20  # bytes of all values of a directory; colour profiles are the largest


@dataclass(frozen=True)
class Directory:
    """The first value of each entry that holds whole numbers, by tag; and whether more follow."""

    values: dict[int, int]
    last: bool


def read_directory(data: bytes) -> Directory:
    """Read a TIFF's first directory; raise FilmError if it, or one below it, asks for too much."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        first = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        directory = _read(data, first, order=order, big=big)
        for tag in _BELOW:
            if tag in directory.values:
                _read(data, directory.values[tag], order=order, big=big)
    except struct.error:
        raise FilmError("TIFF directory is truncated or damaged") from None
    return directory


def _read(data: bytes, at: int, *, order: str, big: bool) -> Directory:
    entry, field = ("HHQ", "Q") if big else ("HHI", "I")
    size = struct.calcsize("=" + entry + field)
    count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    at += 8 if big else 2
    if count > _MAX_ENTRIES:
        raise FilmError("TIFF directory with too many entries")
    values, total = {}, 0
    for _ in range(count):
        tag, kind, number = struct.unpack_from(order + entry, data, at)
        length = number * _SIZES.get(kind, 1)
        total += length
        if kind in (1, 3, 4, 13, 16, 18) and number:
            inline = length <= struct.calcsize(field)
            place = at + size - struct.calcsize(field)
            if not inline:
                place = struct.unpack_from(order + field, data, place)[0]
            letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[_SIZES[kind]]
            values[tag] = struct.unpack_from(order + letter, data, place)[0]
        at += size
    if total > _MAX_VALUES:
        raise FilmError("TIFF directory with values that are too large")
    return Directory(values, last=struct.unpack_from(order + field, data, at)[0] == 0)


def orientation(exif: bytes) -> int:
    """Return the turn, 1 to 8, that an EXIF block names; 1 where it names none or is broken."""
    try:
        turn = read_directory(exif).values.get(ORIENTATION, 1)
    except FilmError:
        return 1
    return turn if 1 <= turn <= 8 else 1
