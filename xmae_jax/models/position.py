"""Fixed two-dimensional sine-cosine positions.

The table of He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377, section
3): the first half of the channels encodes the column, the second half the row; in each half sines
come before cosines. Differs from the reference in its unit: the index is scaled by
base_grid / grid, so that a grid of another resolution spans the same range of positions and
weights move along a chain of resolutions unchanged. Where grid = base_grid the tables are equal.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def _sincos_1d(positions: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, "n d"]:
    omega = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angles = positions[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(grid: tuple[int, int], width: int, *, base_grid: int) -> Float[np.ndarray, "n d"]:
    """Make the float32 table of a row-major grid (gh, gw); `width` must be a multiple of 4."""
    if width % 4:
        raise ValueError(f"a sine-cosine position needs a width divisible by 4, got {width}")
    row, column = np.meshgrid(
        np.arange(grid[0]) * (base_grid / grid[0]),
        np.arange(grid[1]) * (base_grid / grid[1]),
        indexing="ij",
    )
    halves = [_sincos_1d(axis.reshape(-1), width // 2) for axis in (column, row)]
    return np.concatenate(halves, axis=1).astype(np.float32)
