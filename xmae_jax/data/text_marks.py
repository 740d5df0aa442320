"""Find lines of burnt-in text: names, dates and stamps that stand in the picture itself.

A line of text is several strokes of like height side by side on one base line, upright or turned
by a quarter, each whiter or blacker than all around it. One or two letters (L, R, PA) are a
marker and no line. docs/films.md has the rates on real and on made films.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

_SIDE = 1024  # px of the longer side that is looked at
_SMALL = 700  # px: films below are doubled, since their letters touch
_STROKE = 9  # px: nothing wider is a stroke of a letter
_CLEAR, _SHARP = 64, 128  # grey levels around a stroke; the higher parts letters that touch
_PURE, _FAINT = 250, 24  # pure white or black may stand out by less
_HEIGHTS = (6, 48)  # px of a letter
_WIDEST = 3.0  # of a stroke, in heights: touching letters count as several
_LETTER = 0.85  # width of a letter in heights
_GAP, _STEP, _GROWTH = 1.2, 0.25, 1.45  # from one stroke to the next, in heights
_MANY = 1000  # strokes: more are a pattern or noise, not text; real films have up to 209


class Line(NamedTuple):
    """A line of text, in pixels of the copy that was looked at."""

    x: int
    y: int
    width: int
    height: int


def resized(pixels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W"]:
    """Shrink a film to 1024 px, or double a small one."""
    pixels = shrunk(pixels, max(pixels.shape) // _SIDE)
    longer = max(pixels.shape)
    scale = 2.0 if longer <= _SMALL else min(_SIDE / longer, 1.0)
    if scale == 1:
        return pixels
    # Less than twice as many pixels: each of them still counts.
    size = [max(round(side * scale), 1) for side in pixels.shape[::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def shrunk(pixels: UInt8[np.ndarray, "h w"], factor: int) -> UInt8[np.ndarray, "H W"]:
    """Average squares of pixels, a whole number of them along each side, which is quick."""
    if factor < 2:
        return pixels
    height, width = (side // factor for side in pixels.shape)
    whole = pixels[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def text_lines(pixels: UInt8[np.ndarray, "h w"]) -> list[Line]:
    """Return the lines of text of a resized film."""
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    # Three pictures are used again and again: fresh memory costs more than what is done in it.
    relief, strokes, pure = (np.empty_like(pixels) for _ in range(3))
    ends = ((_PURE - 1, cv2.THRESH_BINARY), (255 - _PURE, cv2.THRESH_BINARY_INV))
    found = []
    for hat, (end, side) in zip((cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT), ends, strict=True):
        cv2.morphologyEx(pixels, hat, kernel, dst=relief)
        _mark(relief, _SHARP, strokes)
        found += _lines_both_ways(strokes)
        cv2.threshold(pixels, end, 255, side, dst=pure)
        _mark(relief, _FAINT, strokes)
        cv2.bitwise_and(pure, strokes, dst=pure)
        _mark(relief, _CLEAR, strokes)
        cv2.bitwise_or(pure, strokes, dst=strokes)
        found += _lines_both_ways(strokes)
    return found


def _mark(values: UInt8[np.ndarray, "h w"], least: int, out: UInt8[np.ndarray, "h w"]) -> None:
    """Write 255 into `out` where values are at least so much, 0 elsewhere."""
    cv2.threshold(values, least - 1, 255, cv2.THRESH_BINARY, dst=out)


def _lines_both_ways(strokes: UInt8[np.ndarray, "h w"]) -> list[Line]:
    boxes = _boxes(strokes)
    if not 3 <= len(boxes) <= _MANY:
        return []
    turned = _lines(boxes[:, [1, 0, 3, 2]])
    return _lines(boxes) + [Line(y, x, height, width) for x, y, width, height in turned]


def _boxes(strokes: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, "n 4"]:
    """Return x, y, width and height of each stroke; holes in letters are none."""
    contours, tree = cv2.findContours(strokes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[0, :, 3] if contours else ()
    outer = [cv2.boundingRect(c) for c, up in zip(contours, parents, strict=True) if up < 0]
    return np.array(outer, int).reshape(-1, 4)


def _lines(boxes: Int[np.ndarray, "n 4"]) -> list[Line]:
    """Chain strokes from left to right, each to its nearest neighbour of like height."""
    width, height = boxes[:, 2], boxes[:, 3]
    fits = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1])
    fits &= (width <= _WIDEST * height) & (width >= 0.15 * height)
    strokes = boxes[fits]
    if len(strokes) < 3:
        return []
    strokes = strokes[np.argsort(strokes[:, 0], kind="stable")]
    follows = _follows(strokes)
    last = np.logical_not(follows.any(axis=1)).tolist()
    after = follows.argmax(axis=1).tolist()
    free, found = np.ones(len(strokes), bool), []
    for first in range(len(strokes)):
        chain = [first] if free[first] else []
        while chain and not last[chain[-1]] and free[after[chain[-1]]]:
            chain.append(after[chain[-1]])
        if len(chain) < 3:
            continue
        free[chain] = False
        letters = np.maximum(np.rint(strokes[chain, 2] / (_LETTER * strokes[chain, 3])), 1)
        if len(chain) >= 4 or letters.sum() >= 5:
            x, y = strokes[chain, :2].min(axis=0)
            right, bottom = (strokes[chain, :2] + strokes[chain, 2:]).max(axis=0)
            found.append(Line(int(x), int(y), int(right - x), int(bottom - y)))
    return found


def _follows(strokes: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n n"]:
    """Tell for each stroke (row) which others may be the next letter of its line."""
    x, y, width, height = strokes.T
    bottom, size = y + height, height[:, None]
    gap = x - (x + width)[:, None]
    fits = (x > x[:, None]) & (gap > -0.3 * size) & (gap < _GAP * size)
    fits &= np.abs(bottom - bottom[:, None]) <= _STEP * size
    return fits & (height <= _GROWTH * size) & (size <= _GROWTH * height)
