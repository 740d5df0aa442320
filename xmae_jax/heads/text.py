"""Embeddings of findings' names, made elsewhere: queries that mean something before training."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import safetensors
from jaxtyping import Float

TENSOR, METADATA = "embeddings", "findings"


def read_embeddings(path: str, names: Sequence[str]) -> Float[np.ndarray, "c e"]:
    """Read the rows of `names` from a safetensors file, in their order, float32.

    The file has a tensor `embeddings` [n e], and in its metadata `findings`: a JSON list of n
    names. Raises ValueError that names the file and what it lacks.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            table = file.get_tensor(TENSOR)
            listed = json.loads((file.metadata() or {})[METADATA])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} is no safetensors file with a tensor {TENSOR!r} and, in its metadata, the JSON"
            f" list {METADATA!r}: {error}"
        ) from None
    if table.ndim != 2 or not isinstance(listed, list) or len(listed) != len(table):
        raise ValueError(f"{path}: {TENSOR} {table.shape} is to be a row for each of its findings")
    if missing := [name for name in names if name not in listed]:
        raise ValueError(f"{path} has no embedding of {', '.join(missing)}")
    return table[[listed.index(name) for name in names]].astype(np.float32)
