"""Stored values of a film to grey of 8 or 16 bits, by tables over the values that occur.

The order is that of DICOM PS3.4 annex N.2: modality LUT or rescale, VOI LUT or first window,
then inversion of MONOCHROME1; padding is black in the end. All steps before the last are
functions of one value, so they are computed once for each value and looked up for each pixel.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, Num, UInt, UInt8
from pydicom.multival import MultiValue

from xmae_jax.data.limits import FilmError
from xmae_jax.data.luts import read_lut

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
    table = read_lut(header, "ModalityLUTSequence")
    if table is not None:
        modality = table.values[table.indices(levels)]
    else:
        slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
        if slope is None or intercept is None:
            return levels
        modality = levels * slope + intercept
    if not np.isfinite(modality).all() or np.abs(modality).max() >= 2**31:
        return levels
    return levels if modality.min() == modality.max() else modality


def _voi(
    modality: Num[np.ndarray, " n"], counts: Int[np.ndarray, " n"], header: Any, dtype: Any
) -> UInt[np.ndarray, " n"] | None:
    """Map modality values to grey by the VOI LUT or first window; None where it shows no film."""
    try:
        table = read_lut(header, "VOILUTSequence")
    except FilmError:
        table = None
    if table is not None:
        shares = table.values[table.indices(modality)] / (2**table.bits - 1)
    else:
        shares = _windowed(modality, header)
    if shares is None:
        return None
    top = np.iinfo(dtype).max
    grey = np.clip(np.rint(shares * top), 0, top).astype(dtype)
    if len(np.unique(grey[counts > 0])) <= 2 < np.count_nonzero(counts):
        return None  # a window of width 1, or one beside the film
    return grey


def _windowed(modality: Num[np.ndarray, " n"], header: Any) -> Float[np.ndarray, " n"] | None:
    """Map modality values to 0..1 by the first window (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    function = str(_first(header, "VOILUTFunction") or "").strip().upper() or "LINEAR"
    if function == "LINEAR" and centre is not None and width is not None:
        centre, width = centre - 0.5, width - 1
    if centre is None or width is None or not width > 0:
        return None
    distance = np.clip((modality - centre) / width, -100, 100)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * distance))
    return np.clip(distance + 0.5, 0, 1) if function in ("LINEAR", "LINEAR_EXACT") else None


def _first(header: Any, keyword: str) -> Any:
    """Return an element's first value; None where it is absent, empty or not to be parsed."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError):
        return None
    if isinstance(value, MultiValue):
        return value[0] if value else None
    return value


def _number(header: Any, keyword: str) -> float | None:
    """Return an element's first value as a finite number, or None."""
    try:
        value = float(_first(header, keyword))
    except (ValueError, TypeError):
        return None
    return value if math.isfinite(value) else None


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
