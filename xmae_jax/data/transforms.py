"""Geometry of one film and its lung mask together, in NumPy, OpenCV and Pillow."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt, UInt8
from PIL import Image

cv2.setNumThreads(1)  # the loader's own threads share the cores out


class Box(NamedTuple):
    """A half-open rectangle, as shares of a film's height and width."""

    y0: float
    x0: float
    y1: float
    x1: float

    def seen_through(self, crop: Box) -> Box:
        """Return this rectangle in the coordinates of a crop, clipped to it."""
        height, width = crop.y1 - crop.y0, crop.x1 - crop.x0
        ys = np.clip([(self.y0 - crop.y0) / height, (self.y1 - crop.y0) / height], 0, 1)
        xs = np.clip([(self.x0 - crop.x0) / width, (self.x1 - crop.x0) / width], 0, 1)
        return Box(float(ys[0]), float(xs[0]), float(ys[1]), float(xs[1]))

    def in_whole_pixels(self, height: int, width: int) -> Box:
        """Move every edge to the nearest border between pixels of a film of that size."""
        y0, x0, y1, x1 = self
        return Box(
            round(y0 * height) / height,
            round(x0 * width) / width,
            round(y1 * height) / height,
            round(x1 * width) / width,
        )


WHOLE = Box(0.0, 0.0, 1.0, 1.0)
FITS = ("pad", "squash")  # how a film becomes a square


def random_crop(rng: np.random.Generator, valid: Box, *, scale: tuple[float, float]) -> Box:
    """Draw a rectangle inside `valid` that covers a share of it within `scale`.

    Its aspect ratio is log-uniform in [3/4, 4/3], cut to what fits: the crop of Szegedy et al.
    (arXiv 1409.4842, section 6), but inside the film, so that it never shows padding.
    """
    height, width = valid.y1 - valid.y0, valid.x1 - valid.x0
    area = height * width * rng.uniform(*scale)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(np.sqrt(area * ratio), width)
    h = min(area / w, height)
    w = min(area / h, width)
    y0 = valid.y0 + rng.uniform() * (height - h)
    x0 = valid.x0 + rng.uniform() * (width - w)
    return Box(float(y0), float(x0), float(y0 + h), float(x0 + w))


def square_film(
    pixels: UInt[np.ndarray, "h w"], *, size: int, fit: str
) -> tuple[UInt[np.ndarray, "s s"], tuple[int, int, int, int]]:
    """Make a film square: "pad" keeps its shape, centred on black; "squash" fills the square.

    Returns the square and the box (y0, x0, y1, x1, half open) that the film takes in it. Lanczos
    keeps most detail where a film shrinks, and Pillow widens it then, so that nothing aliases.
    """
    height, width = pixels.shape
    scale = size / max(height, width)
    rows, columns = size, size
    if fit == "pad":
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - rows) // 2, (size - columns) // 2
    box = top, left, top + rows, left + columns
    deep = pixels.dtype == np.uint16  # Pillow resizes 8 bits or floats
    picture = Image.fromarray(pixels.astype(np.float32) if deep else pixels)
    resized = np.asarray(picture.resize((columns, rows), Image.Resampling.LANCZOS))
    square = np.zeros((size, size), pixels.dtype)
    inside = np.clip(np.rint(resized), 0, 65535) if deep else resized
    square[box[0] : box[2], box[1] : box[3]] = inside
    return square, box


def resize_film(
    pixels: UInt8[np.ndarray, "h w"],
    crop: Box,
    size: int,
    into: UInt8[np.ndarray, "size size"] | None = None,
) -> UInt8[np.ndarray, "size size"]:
    """Cut out `crop`, of whole pixels, and resize it to a square by bicubic interpolation.

    Pillow shrinks with antialiasing; OpenCV enlarges, ten times as fast, with Keys' parameter
    -0.75 in place of -0.5, and writes `into` if given.
    """
    h, w = pixels.shape
    y0, x0, y1, x1 = (round(edge) for edge in (crop.y0 * h, crop.x0 * w, crop.y1 * h, crop.x1 * w))
    part = pixels[y0:y1, x0:x1]
    if part.shape == (size, size):
        return part
    if max(part.shape) <= size:
        return cv2.resize(part, (size, size), into, interpolation=cv2.INTER_CUBIC)
    method = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(part).resize((size, size), method))


def resize_mask(
    mask: Bool[np.ndarray, "h w"], crop: Box, size: int
) -> Bool[np.ndarray, "size size"]:
    """Cut out `crop` and resize it; a cell is set where the mask covers at least half of it."""
    h, w = mask.shape
    if crop == WHOLE and (h, w) == (size, size):
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    edges = (crop.x0 * w, crop.y0 * h, min(crop.x1, 1.0) * w, min(crop.y1, 1.0) * h)
    return np.asarray(grey.resize((size, size), Image.Resampling.BOX, box=edges)) >= 128


def coverage(box: Box, grid: tuple[int, int]) -> Float64[np.ndarray, "gh gw"]:
    """Return the share of each cell of a grid over the whole film that lies in a box."""
    shares = []
    for low, high, cells in ((box.y0, box.y1, grid[0]), (box.x0, box.x1, grid[1])):
        edge = np.arange(cells)
        shares.append(
            np.clip(np.minimum(high * cells, edge + 1) - np.maximum(low * cells, edge), 0, 1)
        )
    return shares[0][:, None] * shares[1][None]
