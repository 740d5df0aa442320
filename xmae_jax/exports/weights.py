"""A model's parameters under the names that other code gives them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from xmae_jax.models.names import POSITIONS, TABLES, to_torch
from xmae_jax.models.position import resample, sincos_2d
from xmae_jax.models.vit import EncoderConfig

Arrays = dict[str, np.ndarray]


def renamed(flat: Arrays, table: str) -> tuple[Arrays, Arrays]:
    """Split parameters (path -> array) into those that a table of names has, renamed, and the rest.

    Stacked blocks are taken apart. Learned positions are in neither: see `with_positions`.
    """
    found: Arrays = {}
    left = {name: array for name, array in flat.items() if name != "encoder/positions"}
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


def with_positions(
    arrays: Arrays,
    table: str,
    *,
    flat: Arrays,
    encoder: EncoderConfig,
    grid: tuple[int, int],
    decoder: int | None,
) -> Arrays:
    """Add the tables that are added to tokens, [1 1+n d]: zeros for CLS, then patches in rows.

    flat: all parameters; decoder: its width, None if it is not asked for.
    """
    keys, fixed = POSITIONS[table], encoder.base_grid
    if encoder.positions == "learned":
        patches = resample(flat["encoder/positions"], grid, how=encoder.resample)
    else:
        patches = sincos_2d(grid, encoder.width, base_grid=fixed)
    made = {keys["encoder"]: patches}
    if decoder is not None:
        made[keys["decoder"]] = sincos_2d(grid, decoder, base_grid=fixed)
    return arrays | {
        key: np.pad(np.asarray(one), ((1, 0), (0, 0)))[None] for key, one in made.items()
    }


def head(flat: Arrays, *, linear_cls: bool) -> Arrays:
    """Name a head's parameters: `head.weight` and `head.bias` as timm does, which reads CLS.

    linear_cls: it is one linear map of the last block's CLS. Others have no name elsewhere, and
    keep ours, with dots: a reader of timm's would take what they read for CLS.
    """
    of_head = {name: array for name, array in flat.items() if name.startswith("head/")}
    if not linear_cls:
        return ours(of_head)
    return {
        "head.weight": np.ascontiguousarray(of_head["head/out/kernel"].T),
        "head.bias": of_head["head/out/bias"],
    }


def ours(flat: Arrays) -> Arrays:
    """Write paths with dots."""
    return {name.replace("/", "."): array for name, array in flat.items()}


def write(path: Path, arrays: Arrays, about: dict[str, Any]) -> None:
    """Write a safetensors file; "format": "pt" is what other readers ask for."""
    plain = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    save_file(plain, path, metadata={"format": "pt", **about})
    path.chmod(0o666 & ~_umask())  # the library's files are the owner's alone


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
