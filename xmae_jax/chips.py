"""Accelerators: what one chip can do at most, by its makers' figures."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip's limits."""

    name: str
    flops: float
    """Dense bfloat16 operations a second."""
    hbm: int
    """Bytes of device memory."""
    hbm_speed: float
    """Bytes a second from device memory."""
    link_speed: float
    """Bytes a second that a chip can send to its neighbours along one ring of the interconnect."""
    unit: int
    """Side of the matrix unit; narrower products leave part of it idle."""
    kinds: tuple[str, ...]
    """What JAX's device_kind says, to the letter: an A100 of 40 GB is another chip."""
    source: str
    largest: tuple[int, ...] = ()
    """Sides of the largest slice of TPUs."""


_TPU = "cloud.google.com/tpu/docs/{}; links: jax-ml.github.io/scaling-book/tpus"
_NVIDIA = "NVIDIA {} data sheet, SXM, without sparsity; NVLink one way"

_GIB = 1 << 30

CHIPS = {
    chip.name: chip
    for chip in (
        # fmt: off
        Chip(
            "v4",
            275e12,
            32 * _GIB,
            1.228e12,
            9e10,
            128,
            ("TPU v4",),
            _TPU.format("v4"),
            (16, 16, 16),
        ),
        Chip(
            "v5e",
            197e12,
            16 * _GIB,
            0.819e12,
            9e10,
            128,
            ("TPU v5 lite", "TPU v5e"),
            _TPU.format("v5e"),
            (16, 16),
        ),
        Chip(
            "v5p",
            459e12,
            95 * _GIB,
            2.765e12,
            18e10,
            128,
            ("TPU v5", "TPU v5p"),
            _TPU.format("v5p"),
            (16, 16, 24),
        ),
        Chip(
            "v6e",
            918e12,
            32 * _GIB,
            1.64e12,
            18e10,
            256,
            ("TPU v6 lite", "TPU v6e"),
            _TPU.format("v6e"),
            (16, 16),
        ),
        Chip(
            "a100",
            312e12,
            80 * _GIB,
            2.039e12,
            3e11,
            16,
            ("NVIDIA A100-SXM4-80GB",),
            _NVIDIA.format("A100 of 80 GB"),
        ),
        Chip(
            "h100",
            989e12,
            79 * _GIB,
            3.35e12,
            4.5e11,
            16,
            ("NVIDIA H100 80GB HBM3",),
            _NVIDIA.format("H100"),
        ),
        Chip(
            "h200", 989e12, 140 * _GIB, 4.8e12, 4.5e11, 16, ("NVIDIA H200",), _NVIDIA.format("H200")
        ),
        # fmt: on
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that JAX calls `device_kind`, None if it is not listed."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)
