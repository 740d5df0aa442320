"""Lookup tables of DICOM headers, for modality and VOI (PS3.3 C.11.1.1 and C.11.2.1.1)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from xmae_jax.data.limits import FilmError

_BITS = range(8, 17)  # of an entry


@dataclass(frozen=True)
class Lut:
    """A table, of `bits` an entry, whose first entry is that of the input `first`."""

    values: Int[np.ndarray, " entries"]
    first: int
    bits: int

    def indices(self, inputs: Num[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return which entry each input has; those beyond an end have the last one there."""
        ends = np.clip(np.rint(inputs) - self.first, 0, len(self.values) - 1)
        return ends.astype(np.int64)


def read_lut(header: Any, keyword: str) -> Lut | None:
    """Read the first table of a sequence; None where there is none, FilmError for a broken one."""
    sequence = header.get(keyword)
    if not sequence:
        return None
    try:
        item = sequence[0]
        size, first, bits = (int(number) for number in item.LUTDescriptor)
        size = size % 2**16 or 2**16  # 0 means 65,536, and an SS holds no more than 32,767
        values = _entries(item["LUTData"].value, size, little=header.original_encoding[1])
    except (AttributeError, KeyError, TypeError, ValueError):
        values, size, first, bits = np.zeros(0, np.int64), 1, 0, 0
    if bits not in _BITS or len(values) < size:
        raise FilmError(f"DICOM with a broken table in {keyword}")
    needed = int(values[:size].max()).bit_length()  # some headers tell too few
    return Lut(values[:size], first, max(bits, needed))


def _entries(data: Any, size: int, *, little: bool) -> Int[np.ndarray, " entries"]:
    """Unpack words, as US numbers or the bytes of an OW; some files pack two entries in a word."""
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
    else:
        words = np.atleast_1d(np.asarray(data))
    words = words.astype(np.int64) % 2**16
    if len(words) == -(-size // 2) and size > 1:
        words = np.stack([words & 255, words >> 8], axis=1).ravel()
    return words
