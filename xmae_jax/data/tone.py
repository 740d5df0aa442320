"""Stored values of a film to grey of 8 or 16 bits, by tables over the values that occur.

The order is that of DICOM PS3.4 annex N.2: modality LUT or rescale, VOI LUT or first window,
then inversion of MONOCHROME1; padding is black in the end. All steps before the last are
functions of one value, so they are computed once for each value and looked up for each pixel.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, Num, UInt, UInt8
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from xmae_jax.data.limits import FilmError

_STRIP = 1 << 20  # pixels looked up at a time: NumPy makes 8-byte indices of them


def dicom_grey(
    values: Integer[np.ndarray, "h w"], header: Any, dtype: Any = np.uint8
) -> UInt[np.ndarray, "h w"]:
    """Map a film's stored values to 0 (air) up to the most that `dtype` holds, by its DICOM header.

    Without a usable VOI LUT or window, values are stretched over the range that the film uses;
    8-bit ones that no rescale has touched are display values already.
    """
    low = int(values.min())
    counts = histogram(values, low)
    levels = np.arange(low, low + counts.size)
    padding = _padding(levels, header)
    if counts[~padding].any():
        counts[padding] = 0
    else:
        padding[:] = False  # a padding value that covers the film is a mistake
    modality = _modality(levels, header)
    top = np.iinfo(dtype).max
    table = _voi(modality, counts, header, dtype)
    if table is None:
        eight = int(header.BitsStored) == 8 and low >= 0 and np.array_equal(modality, levels)
        table = (
            (levels * (top // 255)).astype(dtype) if eight else stretched(modality, counts, dtype)
        )
    if header.PhotometricInterpretation == "MONOCHROME1":
        table = top - table
    table[padding] = 0
    return look_up(table, values, low)


def _padding(levels: Int[np.ndarray, " n"], header: Any) -> Any:
    """Return which stored values stand for no exposure (PS3.3 C.7.5.1.1.2)."""
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(levels.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    last = last if isinstance(last, int) else first
    return (levels >= min(first, last)) & (levels <= max(first, last))


def _modality(levels: Int[np.ndarray, " n"], header: Any) -> Num[np.ndarray, " n"]:
    """Apply the modality LUT or rescale; one that maps all to one value is passed over."""
    modality = np.asarray(apply_modality_lut(levels, header))
    if not np.isfinite(modality).all() or np.abs(modality).max() >= 2**31:
        return levels
    if modality.min() == modality.max():
        return levels
    whole = np.rint(modality)
    return whole.astype(np.int64) if np.array_equal(modality, whole) else modality  # LUT indices


def _voi(
    modality: Num[np.ndarray, " n"], counts: Int[np.ndarray, " n"], header: Any, dtype: Any
) -> UInt[np.ndarray, " n"] | None:
    """Map modality values to grey by the VOI LUT or first window; None where it shows no film."""
    huge = np.array([np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int64)
    try:
        # The same function on the extremes gives the range that it maps to, whatever the header.
        ends = np.asarray(apply_voi_lut(huge, header), np.float64)
        mapped = np.asarray(apply_voi_lut(modality, header), np.float64)
    except (ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return None  # a window of no width, a LUT of no known depth: the header is wrong
    if np.array_equal(ends, huge):
        return None
    low = min(ends.min(), mapped.min())
    high = max(ends.max(), mapped.max())
    if not 0 < high - low < np.inf:
        return None
    top = np.iinfo(dtype).max
    table = np.clip(np.rint((mapped - low) * (top / (high - low))), 0, top).astype(dtype)
    if len(np.unique(table[counts > 0])) <= 2 < np.count_nonzero(counts):
        return None  # a window of width 1, or one beside the film
    return table


def histogram(values: Integer[np.ndarray, "h w"], low: int) -> Int[np.ndarray, " n"]:
    """Count each value from `low`, the smallest, up to the largest."""
    size = int(values.max()) - low + 1
    counts = np.zeros(size, np.int64)
    for rows in _strips(values):
        counts += np.bincount(rows.ravel().astype(np.int64) - low, minlength=size)
    return counts


def stretched(
    levels: Num[np.ndarray, " n"], counts: Int[np.ndarray, " n"], dtype: Any
) -> UInt[np.ndarray, " n"]:
    """Map the range that a film uses to that of `dtype`.

    One pixel in a thousand is clipped at each end.
    A 12-bit film in 16 bits would be black if scaled by 65535, and one hot pixel would darken a
    film that is scaled by its maximum.
    """
    order = np.argsort(levels, kind="stable")
    share = np.cumsum(counts[order]) / counts.sum()
    seen = levels[order]
    low, high = (float(seen[np.searchsorted(share, at)]) for at in (0.001, 0.999))
    if high <= low:
        used = levels[counts > 0]
        low, high = float(used.min()), float(used.max())
    return _scaled(levels, low, high, dtype)


def stretched_picture(values: Num[np.ndarray, "h w"], dtype: Any) -> UInt[np.ndarray, "h w"]:
    """Do as `stretched` to each pixel of a picture of 16-bit, 32-bit or float values."""
    if values.dtype in (np.uint8, np.uint16):
        low = int(values.min())
        counts = histogram(values, low)
        return look_up(stretched(np.arange(low, low + counts.size), counts, dtype), values, low)
    if not np.isfinite(values).all():
        raise FilmError("values that are not finite")
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return _scaled(values, float(low), float(high), dtype)


def _scaled(
    values: Num[np.ndarray, "..."], low: float, high: float, dtype: Any
) -> UInt[np.ndarray, "..."]:
    if high <= low:
        raise FilmError("constant picture")
    scaled: Float[np.ndarray, ...] = values.astype(np.float32)
    scaled -= np.float32(low)
    top = np.iinfo(dtype).max
    scaled *= np.float32(top / (high - low))
    return np.clip(np.rint(scaled, out=scaled), 0, top, out=scaled).astype(dtype)


def widened(pixels: UInt8[np.ndarray, "h w"], dtype: Any) -> UInt[np.ndarray, "h w"]:
    """Spread 8 bits over the range of `dtype`."""
    return pixels if dtype == np.uint8 else pixels * dtype(np.iinfo(dtype).max // 255)


def look_up(
    table: UInt[np.ndarray, " n"], values: Integer[np.ndarray, "h w"], low: int
) -> UInt[np.ndarray, "h w"]:
    """Return table[values - low] without an 8-byte copy of the whole film."""
    pixels = np.empty(values.shape, table.dtype)
    for rows, out in zip(_strips(values), _strips(pixels), strict=True):
        out[:] = table[rows.astype(np.int64) - low]
    return pixels


def _strips(values: Any) -> Any:
    step = max(_STRIP // values.shape[1], 1)
    return (values[at : at + step] for at in range(0, values.shape[0], step))
