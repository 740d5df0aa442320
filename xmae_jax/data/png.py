"""Whether a PNG file holds all the rows that its header promises.

Pillow leaves rows black that the compressed data do not reach. Format: PNG (third edition),
clauses 7, 8 and 11.
"""

import zlib

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first column and row of each pass, and its steps.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PASSES += ((0, 1, 1, 2),)
_CHUNK = 1 << 20  # bytes inflated at a time


def depth(data: bytes) -> int:
    """Return the bits of a sample; of a palette's colours, 8."""
    return 8 if data[25] == 3 else data[24]


def interlaced(data: bytes) -> bool:
    """Tell whether a file's rows come in seven passes."""
    return data[28] == 1


def is_complete(data: bytes) -> bool:
    """Inflate a file's picture data, keeping none, and compare its length with the header's."""
    unpacker, missing = zlib.decompressobj(), _raw_bytes(data)
    at = 8
    while at + 12 <= len(data) and missing > 0:
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed = data[at + 8 : at + 8 + length]
            while packed and missing > 0:
                missing -= len(unpacker.decompress(packed, _CHUNK))
                packed = unpacker.unconsumed_tail
        at += 12 + length
    while missing > 0 and (rest := unpacker.decompress(unpacker.unconsumed_tail, _CHUNK)):
        missing -= len(rest)
    return missing <= 0


def _raw_bytes(data: bytes) -> int:
    """Return how many bytes a header's rows take, each with the byte that names its filter."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits = data[24] * _SAMPLES[data[25]]
    passes = PASSES if interlaced(data) else ((0, 0, 1, 1),)
    total = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
