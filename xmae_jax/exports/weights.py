"""A model's parameters under the names that other code gives them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from safetensors.numpy import save_file

from xmae_jax.models.names import POSITIONS, TABLES, to_torch
from xmae_jax.models.position import sincos_2d
from xmae_jax.models.vit import EncoderConfig

Arrays = dict[str, np.ndarray]


def renamed(flat: Arrays, table: str) -> tuple[Arrays, Arrays]:
    """Split parameters (path -> array) into those that a table of names has, renamed, and the rest.

    Stacked blocks are taken apart.
    """
    found: Arrays = {}
    left = dict(flat)
    # A gated MLP's second map has the later of two names.
    gated = any("/gate_up/" in name for name in flat)
    for name in reversed(TABLES[table]) if gated else TABLES[table]:
        if name.ours not in left:
            continue
        array = left.pop(name.ours)
        if "{}" not in name.theirs[0]:
            found |= zip(name.theirs, to_torch(name, array), strict=True)
            continue
        for i, one in enumerate(array):
            keys = [key.format(i) for key in name.theirs]
            found |= zip(keys, to_torch(name, one), strict=True)
    return found, left


def positions(
    encoder: EncoderConfig, grid: tuple[int, int], *, width: int
) -> Float[np.ndarray, "1 n d"]:
    """Make the table that is added to tokens: zeros for CLS, then the patches in rows."""
    table = sincos_2d(grid, width, base_grid=encoder.base_grid)
    return np.concatenate([np.zeros((1, width), np.float32), table])[None]


def with_positions(
    arrays: Arrays,
    table: str,
    *,
    encoder: EncoderConfig,
    grid: tuple[int, int],
    decoder: int | None,
) -> Arrays:
    """Add the fixed tables that other code keeps among its parameters; `decoder`: its width."""
    keys = POSITIONS[table]
    arrays = {keys["encoder"]: positions(encoder, grid, width=encoder.width), **arrays}
    if decoder is not None and "decoder" in keys:
        arrays[keys["decoder"]] = positions(encoder, grid, width=decoder)
    return arrays


def head(flat: Arrays) -> Arrays:
    """Name a head's parameters: `head.weight` and `head.bias` of a linear one, as timm does.

    Those of other heads have no name elsewhere, and keep ours, with dots.
    """
    of_head = {name: array for name, array in flat.items() if name.startswith("head/")}
    if of_head.keys() == {"head/out/kernel", "head/out/bias"}:
        return {
            "head.weight": np.ascontiguousarray(of_head["head/out/kernel"].T),
            "head.bias": of_head["head/out/bias"],
        }
    return ours(of_head)


def ours(flat: Arrays) -> Arrays:
    """Write paths with dots."""
    return {name.replace("/", "."): array for name, array in flat.items()}


def write(path: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], about: dict[str, Any]) -> None:
    """Write a safetensors file; "format": "pt" is what other readers ask for."""
    plain = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    save_file(plain, path, metadata={"format": "pt", **about})
    path.chmod(0o666 & ~_umask())  # the library's files are the owner's alone


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
