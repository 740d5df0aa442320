"""Contour-aware masking: which patches of a film the encoder sees.

Wang et al., Pre-training on High Definition X-ray Images (arXiv 2404.17926): patches inside the
chest contour are hidden with a higher probability than those outside. Differs from the released
code, which knows one fixed rectangle for every film (`rectangle_inside`): here the region is each
film's own lung contour, the number of visible patches is the same in every row whatever the size
of its region, and padding takes no part.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8, UInt32


class Mask(NamedTuple):
    """The visible patches of each row, twice, and the rows whose region said nothing."""

    keep_ids: Int[Array, "b k"]
    """Visible patches, ascending."""
    hidden: Bool[Array, "b n"]
    """The complement of `keep_ids`, padding included; a loss reads `hidden & valid`."""
    uniform: Bool[Array, " b"]
    """Rows without a usable region, drawn uniformly over the valid patches."""


def lung_coverage(
    mask: UInt8[Array, "b h w"] | Bool[Array, "b h w"], grid: tuple[int, int]
) -> Float[Array, "b n"]:
    """Return the share of each patch that the mask covers, row-major over `grid` = (gh, gw).

    Mask height and width are multiples of the grid's; any nonzero value counts as lung.
    """
    (b, h, w), (gh, gw) = mask.shape, grid
    if h % gh or w % gw:
        raise ValueError(f"a lung mask of {h} x {w} does not divide into a grid of {gh} x {gw}")
    cells = (mask != 0).reshape(b, gh, h // gh, gw, w // gw)
    return jnp.mean(cells.astype(jnp.float32), axis=(2, 4)).reshape(b, gh * gw)


def box_coverage(box: Float[Array, "b 4"], grid: tuple[int, int]) -> Float[Array, "b n"]:
    """Return the share of each patch inside a box (y0, x0, y1, x1), given as shares of the film."""

    def overlap(low, high, cells):  # b, b -> b cells
        edge = jnp.arange(cells, dtype=jnp.float32)[None]
        low, high = low[:, None] * cells, high[:, None] * cells
        return jnp.clip(jnp.minimum(high, edge + 1) - jnp.maximum(low, edge), 0, 1)

    rows = overlap(box[:, 0], box[:, 2], grid[0])
    columns = overlap(box[:, 1], box[:, 3], grid[1])
    return (rows[:, :, None] * columns[:, None, :]).reshape(-1, grid[0] * grid[1])


def rectangle_inside(grid: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """Return the released code's region: rows 6 to 15, columns 3 to 15 of a 20 x 20 grid.

    Source: Event-AHU/Medical_Image_Analysis, `random_masking_yiliao`: rows floor(0.25 G) + 1 to
    floor(0.75 G), columns floor(0.125 G) + 1 to floor(0.75 G), both ends included.
    """
    gh, gw = grid
    row, column = np.arange(gh)[:, None], np.arange(gw)[None, :]
    rows = (row >= gh // 4 + 1) & (row <= gh * 3 // 4)
    columns = (column >= gw // 8 + 1) & (column <= gw * 3 // 4)
    return (rows & columns).reshape(-1)


def _weights(ratio_inside: float, ratio_outside: float, n: int) -> tuple[int, int]:
    """Return 1 - ratio of both regions as integers, such that n of them stay below 2^32 / 3.

    Exact for ratios of a few decimals; to a few millionths otherwise.
    """
    inside, outside = (1 - Fraction(repr(float(r))) for r in (ratio_inside, ratio_outside))
    unit = math.lcm(inside.denominator, outside.denominator)
    pair = int(inside * unit), int(outside * unit)
    largest, limit = max(pair), (2**32 // 3) // n
    divisor = Fraction(math.gcd(*pair) or 1)
    if largest / divisor > limit:
        divisor = Fraction(largest, limit)
    return round(pair[0] / divisor), round(pair[1] / divisor)


def _rounded_share(keep: int, part: UInt32[Array, ""], whole: UInt32[Array, ""]) -> Int[Array, ""]:
    """Return floor(keep * part / whole + 0.5) exactly, for part <= whole < 2^32 / 3.

    Long division, one bit of `keep` at a time: float32 would round a tie as the compiler pleases,
    and a mask would then depend on the batch that it is drawn in.
    """
    quotient, rest = jnp.zeros_like(part), jnp.zeros_like(part)
    for bit in f"{keep:b}":
        value = rest * 2 + int(bit) * part
        times = (value >= whole).astype(jnp.uint32) + (value >= 2 * whole)
        quotient, rest = quotient * 2 + times, value - times * whole
    return (quotient + (rest >= whole - rest)).astype(jnp.int32)


def contour_mask(
    keys: Key[Array, " b"],
    inside: Bool[Array, "b n"],
    *,
    keep: int,
    ratio_inside: float,
    ratio_outside: float,
    valid: Bool[Array, "b n"] | None = None,
) -> Mask:
    """Keep exactly `keep` patches visible in every row, fewer inside the contour than outside.

    With n_in and n_out valid patches in the two regions and x = keep * n_in (1 - ratio_inside) /
    (n_in (1 - ratio_inside) + n_out (1 - ratio_outside)), floor(x + 0.5) of the visible patches
    lie inside, clamped to what the regions hold; within a region every patch is equally likely.
    Invalid patches (padding) are visible only when no valid one is left. Where a region is empty,
    or both ratios are 1, the row is uniform over its valid patches. A row depends on its own key,
    region and valid patches alone.
    """
    n = inside.shape[1]
    if not 0 < keep <= n:
        raise ValueError(f"keep is {keep}, and the grid has {n} patches")
    if not (0 <= ratio_inside <= 1 and 0 <= ratio_outside <= 1):
        raise ValueError(f"mask ratios lie in [0, 1], got {ratio_inside} and {ratio_outside}")
    if valid is None:
        valid = jnp.ones_like(inside)
    see_inside, see_outside = _weights(ratio_inside, ratio_outside, n)

    def one_row(key, inside, valid):
        inside, outside = inside & valid, ~inside & valid
        uniform = ~inside.any() | ~outside.any() | (see_inside + see_outside == 0)
        inside, outside = jnp.where(uniform, valid, inside), outside & ~uniform
        n_in, n_out = inside.sum(), outside.sum()
        part = n_in.astype(jnp.uint32) * see_inside
        whole = part + n_out.astype(jnp.uint32) * see_outside
        k_in = jnp.where(whole > 0, _rounded_share(keep, part, jnp.maximum(whole, 1)), keep)
        k_in = jnp.minimum(jnp.maximum(k_in, keep - n_out), jnp.minimum(keep, n_in))
        k_out = jnp.minimum(keep - k_in, n_out)
        # One shuffled order of all patches; the first k of each region in it are visible.
        order = jnp.argsort(jax.random.bits(key, (n,)))
        visible = jnp.zeros(n, bool)
        for region, k in ((inside, k_in), (outside, k_out), (~valid, keep - k_in - k_out)):
            member = region[order]
            visible |= member & (jnp.cumsum(member) <= k)
        return jnp.zeros(n, bool).at[order].set(visible), uniform

    visible, uniform = jax.vmap(one_row)(keys, inside, valid)
    return Mask(chosen_ids(visible, keep), ~visible, uniform)


def chosen_ids(chosen: Bool[Array, "b n"], count: int) -> Int[Array, "b q"]:
    """List the patches that are chosen, `count` in every row, ascending."""
    return jax.vmap(lambda row: jnp.nonzero(row, size=count)[0])(chosen).astype(jnp.int32)


def draw(
    keys: Key[Array, " b"], hidden: Bool[Array, "b n"], valid: Bool[Array, "b n"], *, count: int
) -> Bool[Array, "b n"]:
    """Choose `count` of each row's hidden patches; invalid ones when no other is left.

    Every row hides at least `count`. Uniform over the valid ones; a row depends on its own key
    alone.
    """

    def one_row(key, hidden, valid):
        # A random order within three classes: hidden and valid, hidden, visible.
        turn = jax.random.bits(jax.random.fold_in(key, 1), hidden.shape) >> 2
        turn += (~hidden * jnp.uint32(2) + (hidden & ~valid)) << 30
        return jnp.zeros_like(hidden).at[jnp.argsort(turn)[:count]].set(True)

    return jax.vmap(one_row)(keys, hidden, valid)


def random_mask(
    keys: Key[Array, " b"], n: int, *, keep: int, valid: Bool[Array, "b n"] | None = None
) -> Mask:
    """Keep `keep` of `n` patches, uniformly over the valid ones (MAE's random masking)."""
    everywhere = jnp.ones((keys.shape[0], n), bool)
    return contour_mask(
        keys, everywhere, keep=keep, ratio_inside=0.5, ratio_outside=0.5, valid=valid
    )
