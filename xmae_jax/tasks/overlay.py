"""A map of patches over the film that it is of: at the film's own size, with a bar that says what
the colours are.

The film is never resized: what stands over it and under it is put on beside it.
"""

from __future__ import annotations

import dataclasses
import io

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

_OPAQUE = 0.6  # share of the colour where the map is highest
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_PLASMA)[0, :, ::-1]
_TOP = 99.0  # percentile of the film's patches that gets the last colour: one patch may be far off
_NARROW = 480  # px of a page at least, so that its text is read
_ROWS = 256  # blended at once


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where a film lies in the square that the model saw."""

    shape: tuple[int, int]  # of the film: height, width
    box: tuple[int, int, int, int]  # y0, x0, y1, x1 in the square, half open
    side: int  # of the square


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the colours of a map mean."""

    unit: str
    base: float = 0.0  # from which on there is colour
    least: float = 0.0  # what gets the last colour at least, so that small differences stay pale


def over_film(heat: Float[np.ndarray, "gh gw"], placed: Placed) -> Float[np.ndarray, "h w"]:
    """Interpolate a map of the square's patches at every pixel of the film, float32."""
    top, left, bottom, right = placed.box
    (height, width), side = placed.shape, placed.side
    rows = _weights(heat.shape[0], top / side, bottom / side, height)
    columns = _weights(heat.shape[1], left / side, right / side, width)
    return rows @ heat.astype(np.float32) @ columns.T


def _weights(cells: int, low: float, high: float, pixels: int) -> Float[np.ndarray, "h gh"]:
    """Weigh the cells along an axis for each pixel of a film that lies from `low` to `high`.

    Linear between the middles of cells; beyond the first and the last whose middle is film, as
    there: padding is not mixed in.
    """
    place = (low + (np.arange(pixels) + 0.5) / pixels * (high - low)) * cells - 0.5
    first, last = np.ceil(low * cells - 0.5), np.floor(high * cells - 0.5)
    if first <= last:
        place = place.clip(first, last)
    place = place.clip(0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def top_of(heat: Float[np.ndarray, "gh gw"], scale: Scale) -> float:
    """Return the value that gets the last colour; the base where there is nothing to show."""
    shown = heat[heat > scale.base]
    return max(float(np.percentile(shown, _TOP)), scale.least) if shown.size else scale.base


def draw(
    pixels: UInt8[np.ndarray, "h w"],
    heat: Float[np.ndarray, "gh gw"],
    placed: Placed,
    *,
    lines: tuple[str, ...],
    scale: Scale,
) -> bytes:
    """Return a PNG: lines of text, the film under its map, and a bar of colours with its unit."""
    top = top_of(heat, scale)
    blended = np.repeat(pixels[:, :, None], 3, axis=2)
    if top > scale.base:
        _blend(blended, (over_film(heat, placed) - scale.base) / (top - scale.base))
    height, width = pixels.shape
    wide = max(width, _NARROW)
    size = int(np.clip(wide // 44, 14, 72))
    gap = size // 2
    above = gap + len(lines) * (size + gap)
    page = Image.new("RGB", (wide, above + height + 3 * size + 3 * gap), "white")
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        _write(pen, (gap, gap + number * (size + gap)), line, size=size, room=wide - 2 * gap)
    page.paste(Image.fromarray(blended), (0, above))
    _bar(page, pen, above + height + gap, size=size, top=top, scale=scale)
    data = io.BytesIO()
    page.save(data, "PNG", compress_level=3)
    return data.getvalue()


def _blend(film: UInt8[np.ndarray, "h w 3"], share: Float[np.ndarray, "h w"]) -> None:
    """Lay the colours over the film, denser where the map is higher, a few rows at a time."""
    for row in range(0, len(film), _ROWS):
        part = np.clip(share[row : row + _ROWS], 0, 1)
        alpha = _OPAQUE * part[:, :, None]
        colour = _COLOURS[np.rint(part * 255).astype(np.uint8)]
        mixed = (1 - alpha) * film[row : row + _ROWS] + alpha * colour
        film[row : row + _ROWS] = np.rint(mixed).astype(np.uint8)


def _bar(
    page: Image.Image, pen: ImageDraw.ImageDraw, y: int, *, size: int, top: float, scale: Scale
) -> None:
    """Draw the colours over mid-grey, as they look over a film, their ends and their unit."""
    gap, wide = size // 2, page.width
    if top <= scale.base:
        _write(pen, (gap, y), f"nothing to show: {scale.unit}", size=size, room=wide - 2 * gap)
        return
    room = wide - 10 * size
    bar = np.full((size, room, 3), 128, np.uint8)
    _blend(bar, np.tile(np.linspace(0, 1, room, dtype=np.float32), (size, 1)))
    page.paste(Image.fromarray(bar), (2 * size, y))
    pen.rectangle((2 * size - 1, y - 1, 2 * size + room, y + size), outline="black")
    _write(pen, (gap, y), f"{scale.base:g}", size=size, room=size)
    _write(pen, (2 * size + room + gap, y), f"{top:.3g} and more", size=size, room=8 * size - gap)
    _write(pen, (gap, y + size + gap), scale.unit, size=size, room=wide - 2 * gap)


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, *, size: int, room: int
) -> None:
    """Write a line, smaller where it would not fit."""
    font = ImageFont.load_default(size)
    while size > 8 and pen.textlength(text, font) > room:
        size -= 1
        font = ImageFont.load_default(size)
    pen.text(at, text, "black", font)
