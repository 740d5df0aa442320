"""What a JPEG, JPEG-LS or JPEG 2000 stream asks of its decoder, read from its markers alone.

Decoders allocate by these numbers and not by the DICOM header's, and some decode a stream that
was cut or padded without a word. Markers: ISO/IEC 10918-1 annex B, 14495-1 annex C, 15444-1
annex A.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from xmae_jax.data.limits import FilmError

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0 to SOF15, SOF55
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_MAX_SCANS = 64  # a progressive JPEG has about ten; thousands are a way to keep a decoder busy
# JPEG 2000: a decoder holds about 100 bytes for each block, precinct and layer of each packet.
_MAX_TILES, _MAX_LAYERS, _MAX_BLOCKS = 8192, 256, 1 << 19


@dataclass(frozen=True)
class Codestream:
    """The shape that a stream decodes to."""

    rows: int
    columns: int
    components: int
    precision: int  # bits of a sample
    exif: bytes = b""


def jpeg_stream(data: bytes) -> Codestream:
    """Read a JPEG or JPEG-LS stream's frame header; raise FilmError where there is none.

    The markers have to lead on to a scan: where they do not, GDCM may end the process.
    """
    exif, frame, scan = b"", None, False
    for marker, start, end in _segments(data):
        if marker == _APP1 and data[start : start + 6] == b"Exif\0\0":
            exif = exif or data[start + 6 : end]
        elif marker in _FRAMES and frame is None and end - start >= 6:
            frame = struct.unpack_from(">BHHB", data, start)
        elif marker == _SOS:
            if data.count(b"\xff\xda", end) >= _MAX_SCANS:
                raise FilmError("JPEG with too many scans")
            scan = True
            break
    if frame is None:
        raise FilmError("JPEG without a frame header, or truncated")
    if not scan:
        raise FilmError("JPEG without a scan, truncated or damaged")
    precision, rows, columns, components = frame
    return Codestream(rows, columns, components, precision, exif)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each marker segment up to the first scan's data."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker < 0xC0 or marker in (_SOI, _EOI):  # below: none that a header may have
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            return
        yield marker, at + 4, end
        at = end


def j2k_stream(data: bytes) -> Codestream:
    """Read a JPEG 2000 stream's main header and walk its tile-parts to their end.

    Raises FilmError for a stream that is cut, that goes on after its end, or that would make a
    decoder allocate far more than its pixels.
    """
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers put JP2 boxes before it
    if start < 0 or len(data) < start + 44:
        raise FilmError("JPEG 2000 without a size header, or truncated")
    right, bottom, left, top, tile_w, tile_h = struct.unpack_from(">6I", data, start + 8)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    rows, columns = bottom - top, right - left
    if min(rows, columns, tile_w, tile_h, components) < 1:
        raise FilmError("JPEG 2000 of no size")
    if -(-rows // tile_h) * -(-columns // tile_w) > _MAX_TILES:
        raise FilmError("JPEG 2000 with too many tiles")
    at = _check_coding(data, start + 2, rows * columns)
    while data[at : at + 2] == b"\xff\x90" and at + 10 <= len(data):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if length == 0:  # the last part runs up to the end marker
            at = max(data.rfind(b"\xff\xd9"), at)
            break
        at += max(length, 12)
    if data[at : at + 2] != b"\xff\xd9":
        raise FilmError("JPEG 2000 is truncated or damaged")
    if len(data) - at - 2 > 64:  # an even length and a little padding are no second picture
        raise FilmError("JPEG 2000 goes on after its end")
    return Codestream(rows, columns, components, (depth & 0x7F) + 1)


def _check_coding(data: bytes, at: int, pixels: int) -> int:
    """Check the coding style in the main header; return where the first tile-part begins."""
    while data[at : at + 2] != b"\xff\x90":
        if at + 4 > len(data) or data[at] != 0xFF:
            raise FilmError("JPEG 2000 is truncated or damaged")
        end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
        marker = data[at + 1]
        if marker == 0x52 and end - at >= 14:  # COD: style, order, layers, ..., levels, blocks
            style, layers = data[at + 4], int.from_bytes(data[at + 6 : at + 8], "big")
            block = (data[at + 10] & 15) + (data[at + 11] & 15) + 4  # log2 of its area
            sizes = data[at + 14 : end] if style & 1 else b""
            # The last is of the full resolution; each one before has a quarter of the pixels.
            precincts = [
                (size & 15) + (size >> 4) + 2 * level for level, size in enumerate(sizes[::-1])
            ]
            if layers > _MAX_LAYERS or pixels >> min([block, *precincts]) > _MAX_BLOCKS:
                raise FilmError("JPEG 2000 with too many layers or blocks")
        at = end
    return at
