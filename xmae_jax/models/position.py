"""Positions of patches: a fixed two-dimensional sine-cosine table, and learned ones.

The fixed table is that of He et al., Masked Autoencoders Are Scalable Vision Learners (arXiv
2111.06377, section 3): the first half of the channels encodes the column, the second half the row;
in each half sines come before cosines. Differs from the reference in its unit: the index is scaled
by base_grid / grid, so that a grid of another resolution spans the same range of positions and
weights move along a chain of resolutions unchanged. Where grid = base_grid the tables are equal.
Learned tables are resampled by a cubic filter, as the models do that they come from.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Resample = Literal["cubic", "antialiased"]
"""PyTorch's two bicubic filters: a = -0.75 on the four nearest cells, as ViT, ViTMAE and Dinov2 of
Hugging Face do; or a = -0.5, widened where the grid shrinks, as timm and Dinov2WithRegisters do."""


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


def _cubic(x: Float[np.ndarray, "*n"], a: float) -> Float[np.ndarray, "*n"]:
    """Weigh a sample at distance x (Keys, IEEE ASSP 29(6), 1981, equation 15)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _filter(old: int, new: int, how: Resample) -> Float[np.ndarray, "m n"]:
    """Weigh `old` cells for each of `new` along an axis; both cover the same length."""
    ratio = old / new
    centre = (np.arange(new) + 0.5) * ratio - 0.5
    if how == "antialiased":
        weights = _cubic((np.arange(old) - centre[:, None]) / max(ratio, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    cells = np.floor(centre)[:, None] + np.arange(-1, 3)
    weights = np.zeros((new, old))
    rows = np.arange(new)[:, None]
    # A cell outside has the value of the one at the edge.
    np.add.at(
        weights,
        (rows, np.clip(cells, 0, old - 1).astype(int)),
        _cubic(cells - centre[:, None], -0.75),
    )
    return weights


def resample(
    table: Float[Array | np.ndarray, "n d"], grid: tuple[int, int], *, how: Resample
) -> Float[Array, "m d"]:
    """Resample the table of a square grid to the grid (gh, gw); float32."""
    side = round(len(table) ** 0.5)
    if grid == (side, side):
        return jnp.asarray(table)
    down, across = (jnp.asarray(_filter(side, size, how), jnp.float32) for size in grid)
    cells = table.reshape(side, side, -1)
    exact = jax.lax.Precision.HIGHEST
    out = jnp.einsum("is,jt,std->ijd", down, across, cells, precision=exact)
    return out.reshape(grid[0] * grid[1], -1)
