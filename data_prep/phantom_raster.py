"""Raster tools of the phantoms: a stable random stream, a film grid, soft edges, and tubes.

Geometry is in normalised units (1 = the film's width, 35 cm), so that the size of a film changes
the raster and nothing else. Random numbers come from Philox's raw bits, which NumPy promises to
keep, never from NumPy's distributions, which it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

FILM_MM = 350.0
_TABLE = 4096
_HALF = 0.75  # tables span -0.75 to 0.75 about the middle of the film
_LEVELS = (0.0013, 0.0028, 0.006)  # widths (sd) into which tubes are sorted


class Draws:
    """A random stream that depends on its keys only."""

    def __init__(self, *keys: int) -> None:
        key = np.random.SeedSequence(list(keys)).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a float in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniforms(self, *shape: int) -> np.ndarray:
        """Draw an array in [0, 1)."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def normal(self, mean: float = 0.0, sd: float = 1.0, *, clip: float = 2.5) -> float:
        """Draw a normal number, clipped at `clip` standard deviations."""
        z = float(special.ndtri(self.uniform() * 0.999998 + 1e-6))
        return mean + sd * min(max(z, -clip), clip)

    def normals(self, *shape: int) -> np.ndarray:
        """Draw an array of standard normal numbers."""
        return special.ndtri(self.uniforms(*shape) * 0.999998 + 1e-6)

    def chance(self, probability: float) -> bool:
        """Draw True with the given probability."""
        return self.uniform() < probability

    def pick(self, options: Sequence):
        """Draw one of the options."""
        return options[int(self.uniform() * len(options))]

    def grain(self, size: int) -> np.ndarray:
        """Draw [size size] unit noise, nearly normal: the sum of four 16-bit numbers a pixel."""
        raw = self._bits.random_raw(size * size).view(np.uint16).reshape(size, size, 4)
        total = raw[..., 0].astype(np.float32)
        for part in range(1, 4):
            total += raw[..., part]
        return (total - np.float32(131070.0)) * np.float32(1 / (65536 * np.sqrt(4 / 12)))


@dataclass(frozen=True)
class Frame:
    """A film's pixel grid, seen from the patient: x from the midline, y downwards, both ~[0, 1].

    Film position = centre + shift + scale * rotation(angle) * (patient position - centre).
    """

    size: int
    angle: float
    scale: float
    shift: tuple[float, float]

    def __post_init__(self) -> None:
        step = 1.0 / self.size
        at = (np.arange(self.size, dtype=np.float32) + np.float32(0.5)) * np.float32(step)
        col, row = at[None, :] - 0.5 - self.shift[0], at[:, None] - 0.5 - self.shift[1]
        cos, sin = float(np.cos(self.angle)) / self.scale, float(np.sin(self.angle)) / self.scale
        self._fill(cos * col + sin * row, cos * row - sin * col + 0.5, step / self.scale)

    def _fill(self, x: np.ndarray, y: np.ndarray, px: float) -> None:
        fields = {"x": x, "y": y, "ax": np.abs(x), "px": px}
        indices = {"_ix": _index(x), "_iy": _index(y - 0.5)}
        middle = (_TABLE - 1) / 2
        indices["_iax"] = np.abs(indices["_ix"] - int(middle)) + int(middle)
        for name, value in {**fields, **indices}.items():
            object.__setattr__(self, name, value)

    def crop(self, rows: tuple[float, float], cols: tuple[float, float] = (-0.2, 1.2)) -> Crop:
        """Return the part of the grid that holds these patient rows and columns (x + 0.5)."""
        slack = 0.51 * abs(float(np.sin(self.angle))) + 0.003
        cut = []
        for (low, high), shift in ((rows, self.shift[1]), (cols, self.shift[0])):
            low = 0.5 + shift + self.scale * (low - 0.5) - slack
            high = 0.5 + shift + self.scale * (high - 0.5) + slack
            first = min(max(int(low * self.size), 0), self.size - 1)
            cut.append(slice(first, min(max(int(high * self.size) + 1, first + 1), self.size)))
        return Crop(self, (cut[0], cut[1]))

    def of_y(self, curve: Curve) -> np.ndarray:
        """Evaluate a curve of y at every pixel."""
        return np.take(curve.values, self._iy)

    def of_x(self, curve: Curve) -> np.ndarray:
        """Evaluate a curve of x at every pixel."""
        return np.take(curve.values, self._ix)

    def of_ax(self, curve: Curve) -> np.ndarray:
        """Evaluate a curve of |x| at every pixel."""
        return np.take(curve.values, self._iax)

    def to_film(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map patient positions to film positions in [0, 1]."""
        cos, sin = np.cos(self.angle) * self.scale, np.sin(self.angle) * self.scale
        y = y - 0.5
        col = 0.5 + self.shift[0] + cos * x - sin * y
        return np.asarray(col), np.asarray(0.5 + self.shift[1] + sin * x + cos * y)

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Return the pixels within `reach` of a patient position (at least one)."""
        col, row = self.to_film(np.asarray(x), np.asarray(y))
        reach = reach * self.scale * 1.05
        out = []
        for middle in (float(row), float(col)):
            low = int(np.clip(np.floor((middle - reach) * self.size), 0, self.size - 1))
            high = int(np.clip(np.ceil((middle + reach) * self.size), low + 1, self.size))
            out.append(slice(low, high))
        return out[0], out[1]


def _index(value: np.ndarray) -> np.ndarray:
    scaled = (value + np.float32(_HALF)) * np.float32((_TABLE - 1) / (2 * _HALF)) + np.float32(0.5)
    return np.clip(scaled, 0, _TABLE - 1).astype(np.intp)


class Crop(Frame):
    """A window of a frame: the same coordinates on fewer pixels."""

    def __init__(self, frame: Frame, window: tuple[slice, slice]) -> None:
        for name, value in vars(frame).items():
            cut = value[window] if isinstance(value, np.ndarray) else value
            object.__setattr__(self, name, cut)
        object.__setattr__(self, "at", window)


class Curve:
    """A function of one coordinate as a table; `x` curves about 0, `y` curves about 0.5."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], *, axis: str) -> None:
        self.offset = 0.5 if axis == "y" else 0.0
        at = np.linspace(-_HALF, _HALF, _TABLE) + self.offset
        self.values = np.asarray(function(at), np.float32)

    def at(self, value: float) -> float:
        """Evaluate at one place."""
        index = int((value - self.offset + _HALF) * (_TABLE - 1) / (2 * _HALF) + 0.5)
        return float(self.values[min(max(index, 0), _TABLE - 1)])


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Turn a signed distance (positive inside) into coverage, over an edge of `width`."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


def step(value: np.ndarray) -> np.ndarray:
    """Ease from 0 to 1 as value goes from 0 to 1."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def smooth_max(*values: np.ndarray, k: float = 90.0) -> np.ndarray:
    """Return the maximum with rounded joints, as one contour grows out of another."""
    stacked = np.stack(np.broadcast_arrays(*values))
    top = stacked.max(0)
    return top + np.log(np.exp(k * (stacked - top)).sum(0)) / k


def blend_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Return the minimum of two fields, rounded where they are within `width` of each other."""
    near = np.clip(0.5 + (b - a) * (0.5 / width), 0, 1)
    return b + (a - b) * near - width * near * (1 - near)


def bow(start, end, bend: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample a curve from start to end whose middle is displaced sideways by `bend`."""
    t = np.linspace(0, 1, points)
    dx, dy = end[0] - start[0], end[1] - start[1]
    arch = 4 * t * (1 - t) * bend
    length = np.hypot(dx, dy) + 1e-9
    return start[0] + t * dx - arch * dy / length, start[1] + t * dy + arch * dx / length


class Tubes:
    """Round tubes (vessels, cortical lines) that are collected and then rendered at once."""

    def __init__(self) -> None:
        self._points: list[tuple[np.ndarray, ...]] = []

    def add(self, x, y, radius, spacing, gain=1.0) -> None:
        """Add points along tubes: positions, radii, and the length for which each stands."""
        parts = np.broadcast_arrays(x, y, radius, spacing, gain)
        self._points.append(tuple(np.ravel(part).astype(np.float64) for part in parts))

    def line(self, start, end, *, bend=0.0, radius=0.002, gain=1.0, points=160) -> None:
        """Add one bowed line."""
        x, y = bow(start, end, bend, points)
        self.add(x, y, radius, np.hypot(end[0] - start[0], end[1] - start[1]) / points, gain)

    def render(self, frame: Frame) -> np.ndarray:
        """Return the thickness map [h w]: each tube's cross-section, blurred to its width."""
        total = np.zeros((frame.size, frame.size), np.float32)
        if not self._points:
            return total
        x, y, radius, spacing, gain = (np.concatenate(c) for c in zip(*self._points, strict=True))
        col, row = frame.to_film(x, y)
        volume = np.pi * radius**2 * spacing * gain * (frame.size * frame.scale) ** 2
        level = np.digitize(radius, [1.5 * w for w in _LEVELS[:-1]])
        for index, width in enumerate(_LEVELS):
            chosen = level == index
            sigma = max(width * frame.size * frame.scale, 0.35)
            cut = _around(row[chosen], col[chosen], 3 * sigma + 2, frame.size)
            if cut:
                flat = _splat(col[chosen], row[chosen], volume[chosen], frame.size)[cut]
                total[cut] += ndimage.gaussian_filter(flat, sigma, mode="constant", truncate=3.0)
        return total


def _around(row, col, reach: float, size: int) -> tuple[slice, slice] | None:
    """Return the pixels around all positions, or None where no position is on the film."""
    on = (row > 0) & (row < 1) & (col > 0) & (col < 1)
    if not on.any():
        return None
    low = [max(int(at[on].min() * size - reach), 0) for at in (row, col)]
    high = [min(int(at[on].max() * size + reach) + 2, size) for at in (row, col)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def _splat(col: np.ndarray, row: np.ndarray, weight: np.ndarray, size: int) -> np.ndarray:
    """Share each weight among the four pixels around its position."""
    col, row = col * size + 0.5, row * size + 0.5  # one pixel of margin on each side
    inside = (col >= 0) & (col < size + 1) & (row >= 0) & (row < size + 1)
    col, row, weight = col[inside], row[inside], weight[inside]
    left, top = col.astype(np.intp), row.astype(np.intp)
    fx, fy = col - left, row - top
    wide = size + 2
    corner = top * wide + left
    where = np.concatenate([corner, corner + 1, corner + wide, corner + wide + 1])
    upper, lower = weight * (1 - fy), weight * fy
    share = np.concatenate([upper * (1 - fx), upper * fx, lower * (1 - fx), lower * fx])
    flat = np.bincount(where, share, wide * wide).reshape(wide, wide)
    return flat[1:-1, 1:-1].astype(np.float32)
