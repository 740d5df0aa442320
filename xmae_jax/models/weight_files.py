"""Read weights files as data: no code in them is run, and what is damaged is refused by name.

`.safetensors` needs nothing; `.pth`, `.pt` and `.bin` are pickles, of which PyTorch's weights-only
reader takes tensors, plain containers and `argparse.Namespace`, and refuses everything else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

SAFE, PICKLED = (".safetensors",), (".pth", ".pt", ".bin")
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
_SPACING = {"F16": 2.0**-10, "BF16": 2.0**-7}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TORCH = (2, 10)
"""The first version whose weights-only reader is safe, as far as is known."""
_WRAPPERS = ("model", "state_dict", "teacher")
"""Under one of these names training scripts keep the weights beside the optimizer."""


class WeightFile(NamedTuple):
    """Arrays by the names that the file gives them, and the JSON that lay beside it."""

    path: Path
    arrays: dict[str, np.ndarray]
    """float32; arrays of other kinds than floating point are left out."""
    config: dict[str, Any]
    """`config.json` of a Hugging Face or timm folder."""
    preprocessor: dict[str, Any]
    """`preprocessor_config.json`."""
    metadata: dict[str, str]
    """Of a safetensors file."""
    arguments: dict[str, Any]
    """`args` of a training script, of a pickled file."""
    halves: dict[str, float]
    """Spacing at 1 of the numbers that arrays of less than 32 bits were stored as."""


class _Read(NamedTuple):
    """What one file holds; see `WeightFile`."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]
    arguments: dict[str, Any]
    halves: dict[str, float]


def is_weights(path: Path) -> bool:
    """Say whether a path looks like a weights file, or a folder with one."""
    if path.is_dir():
        return any((path / name).is_file() for name in _IN_FOLDERS)
    return path.is_file() and path.suffix in (*SAFE, *PICKLED)


def read_weights(path: Path) -> WeightFile:
    """Read a weights file, or a Hugging Face or timm folder; ValueError says what is wrong."""
    if not is_weights(path):
        kinds = ", ".join((*SAFE, *PICKLED))
        raise ValueError(
            f"{path} is no weights file ({kinds}), nor a folder with {' or '.join(_IN_FOLDERS)}"
        )
    file = path
    if path.is_dir():
        file = next(path / name for name in _IN_FOLDERS if (path / name).is_file())
    in_folder = file.name in _IN_FOLDERS
    read = _read_safetensors if file.suffix in SAFE else _read_pickled
    try:
        found = read(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    arrays = found.arrays
    if not arrays:
        raise ValueError(f"{file} holds no weights")
    bad = sorted(name for name, array in arrays.items() if not np.isfinite(array).all())
    if bad:
        raise ValueError(f"{file}: not finite: {', '.join(bad)}")
    return WeightFile(
        file,
        arrays,
        _json(file.parent / "config.json") if in_folder else {},
        _json(file.parent / "preprocessor_config.json") if in_folder else {},
        found.metadata,
        found.arguments,
        found.halves,
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is no JSON object")
    return tree


def _read_safetensors(file: Path) -> _Read:
    try:
        stored = safetensors.deserialize(file.read_bytes())
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from None
    halves = {n: _SPACING[one["dtype"]] for n, one in stored if one["dtype"] in _SPACING}
    arrays = {
        name: np.frombuffer(one["data"], np.dtype(_DTYPES[one["dtype"]]))
        .reshape(one["shape"])
        .astype(np.float32)
        for name, one in stored
        if one["dtype"] in _DTYPES
    }
    return _Read(arrays, metadata, {}, halves)


def _read_pickled(file: Path) -> _Read:
    try:
        import torch  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise ValueError(
            f"{file} is PyTorch's own format, which PyTorch reads: pip install 'xmae_jax[convert]',"
            " or save the weights as .safetensors"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _TORCH:
        raise ValueError(
            f"{file}: PyTorch {torch.__version__} could be made to run code in it"
            f" (CVE-2026-24747); {'.'.join(map(str, _TORCH))} or newer reads it"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch raise many kinds
        text = " ".join(str(error).split())
        raise ValueError(
            f"{file} is refused: it is damaged, or holds more than weights, and code in a file is"
            f" not run ({type(error).__name__}: {text[:200]})"
        ) from None
    arguments = tree.get("args") if isinstance(tree, dict) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    for name in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict):
        raise ValueError(f"{file} holds no named weights")
    tensors = {
        str(name): value
        for name, value in tree.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    for name, value in tensors.items():
        # A view that repeats its numbers would let a small file fill the memory.
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{file}: {name} claims more numbers than the file holds")
    return _Read(
        {name: value.float().numpy() for name, value in tensors.items()},
        {},
        arguments,
        {n: torch.finfo(x.dtype).eps for n, x in tensors.items() if x.element_size() < 4},
    )
