"""Lung masks that come with the films: a picture, several pictures, or runs in a CSV file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data_prep.chexmask import RunLength
from xmae_jax.data.film import FilmError, read_mask


@dataclass(frozen=True, slots=True)
class Parts:
    """One mask in several pictures, as the left and the right lung; their union counts."""

    paths: tuple[Path, ...]


Mask = Path | Parts | RunLength


def read_given(mask: Mask) -> Bool[np.ndarray, "h w"]:
    """Read a mask of any form; raise FilmError if it is none."""
    if isinstance(mask, RunLength):
        return mask.read()
    if isinstance(mask, Path):
        return read_mask(mask)
    parts = [read_mask(path) for path in mask.paths]
    if len({part.shape for part in parts}) != 1:
        raise FilmError("the parts of a mask differ in size")
    return np.logical_or.reduce(parts)


def given_name(mask: Mask, named: str) -> str:
    """Name where a mask is from; `named`: what the table of labels says."""
    return "chexmask" if isinstance(mask, RunLength) else named or "file"
