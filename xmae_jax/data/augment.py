"""Random changes of a film and its masks, for training: where it lies, and how it was exposed."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, UInt8


@dataclasses.dataclass(frozen=True)
class Augment:
    """How strong; 0 leaves a change out."""

    rotate: float
    """Degrees, at most, to either side."""
    scale: float
    """The film is enlarged, which crops it, or made smaller by a factor of e^scale at most."""
    stretch: float
    """Likewise for height against width."""
    shift: float
    """Share of the side, at most."""
    mirror: float
    """Probability."""
    gamma: float
    """Grey values in [0, 1] are raised to a power from e^-gamma to e^gamma."""
    contrast: float
    """Their range shrinks by this share at most, and moves as far as it can."""
    invert: float
    """Probability."""
    noise: float
    """Standard deviation of white noise, at most, of values in [0, 1]."""
    blur: float
    """Standard deviation of a Gaussian, at most, in pixels."""
    haze: float
    """Brightness of a soft cloud over a part of the film, at most: an opaque lung."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must not be negative")
        if max(self.mirror, self.invert, self.contrast) > 1:
            raise ValueError("mirror, invert and contrast must not pass 1")

    def place(self, rng: np.random.Generator, size: int) -> Float32[np.ndarray, "2 3"]:
        """Draw the affine map from the centred unit square of a film to a view of `size` px."""
        angle = np.radians(rng.uniform(-1, 1) * self.rotate)
        zoom = np.exp(rng.uniform(-1, 1) * self.scale)
        wide = np.exp(rng.uniform(-0.5, 0.5) * self.stretch)
        flip = -1.0 if rng.uniform() < self.mirror else 1.0
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = size * zoom * turn @ np.diag([flip * wide, 1 / wide])
        move = size * (0.5 + rng.uniform(-1, 1, 2) * self.shift)
        return np.column_stack([linear, move]).astype(np.float32)

    def expose(
        self, rng: np.random.Generator, pixels: UInt8[np.ndarray, "h w"]
    ) -> UInt8[np.ndarray, "h w"]:
        """Change grey values."""
        gain = 1 - rng.uniform() * self.contrast
        table = np.linspace(0, 1, 256) ** np.exp(rng.uniform(-1, 1) * self.gamma)
        table = table * gain + rng.uniform() * (1 - gain)
        x = cv2.LUT(pixels, table.astype(np.float32))
        if self.haze and rng.uniform() < 0.5:
            coarse = np.clip(rng.standard_normal((4, 4)), 0, 1) * rng.uniform(0, self.haze)
            cloud = cv2.resize(coarse.astype(np.float32), x.shape[::-1])
            x += (1 - x) * cloud
        if self.blur and rng.uniform() < 0.3:
            x = cv2.GaussianBlur(x, (0, 0), 0.3 + rng.uniform() * self.blur)
        if self.noise:
            x += rng.uniform(0, self.noise) * rng.standard_normal(x.shape, dtype=np.float32)
        x *= 255
        grey = cv2.convertScaleAbs(np.maximum(x, 0, out=x)).astype(np.uint8)  # stops at 255
        return np.invert(grey) if rng.uniform() < self.invert else grey


def warp(
    pixels: UInt8[np.ndarray, "h w"], place: Float32[np.ndarray, "2 3"], size: int
) -> UInt8[np.ndarray, "size size"]:
    """Lay a film, or a mask of 0 and 255 of any resolution, as `place` says; black outside it."""
    h, w = pixels.shape
    # Pixel centres of the film to the centred unit square.
    to_unit = np.array([[1 / w, 0, 0.5 / w - 0.5], [0, 1 / h, 0.5 / h - 0.5], [0, 0, 1]])
    matrix = place.astype(np.float64) @ to_unit
    matrix[:, 2] -= 0.5  # and the view's own centres
    return cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR)
