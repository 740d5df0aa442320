"""The mesh, and where every array lies on it; nothing else in the project names a mesh axis.

One device is a mesh of one. Rows of a batch are split over both axes; parameters, and with them
their moments and averages, are split over `fsdp` along one axis each.
"""

from __future__ import annotations

import itertools
import math
import re
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from xmae_jax.typing import leaf_path

RULES = (
    (r".*/blocks/.*/kernel", P(None, "fsdp")),
    (r".*/kernel", P("fsdp")),
    (r".*", P()),
)
"""(regular expression over the paths of the train state, how to split); the first match counts."""


def make_mesh(*, data: int, fsdp: int) -> Mesh:
    """Lay all devices out as [data, fsdp]; data = -1 takes what fsdp leaves."""
    devices = jax.device_count()
    if devices % fsdp:
        raise ValueError(f"mesh.fsdp is {fsdp}, and there are {devices} devices")
    data = devices // fsdp if data == -1 else data
    if data * fsdp > devices:
        raise ValueError(f"mesh is {data} x {fsdp}, and there are {devices} devices")
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[: data * fsdp],
    )


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Map a tree of shapes to a tree of shardings by `RULES`."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = leaf_path(path)
        spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, name))
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"{name} has shape {leaf.shape}: {size} does not split over {axis} ="
                    f" {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis of a batch over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, P())


def host_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " r"]:
    """Return which rows of a global batch of `rows` this process loads, in order.

    They need not lie together, and another process may load some of them too.
    """
    sharding = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in sharding.spec[0])
    if rows % parts:
        raise ValueError(f"a batch of {rows} rows does not split over {parts} devices")
    spans = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique([np.arange(rows)[span] for span in spans if span is not None])


def to_global(batch: dict[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, jax.Array]:
    """Join every process's `host_rows` to arrays of the global batch."""
    sharding, own = batch_sharding(mesh), host_rows(mesh, rows)

    def join(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            low, high, _ = index[0].indices(rows)
            start = int(np.searchsorted(own, low))
            return local[start : start + high - low]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part)

    return {name: join(array) for name, array in batch.items()}


def connect(mesh: Mesh) -> None:
    """Bring every group of devices together once, while all processes are at the same place.

    Gloo, which joins CPUs, gives up a group of which a process is 30 s late, as it may be at its
    first step for having had to compile; of groups that know each other it never does.
    """
    multihost_utils.sync_global_devices("connect")
    names = tuple(name for name, size in mesh.shape.items() if size > 1)
    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, P(names)), lambda i: np.ones(mesh.size, np.float32)[i]
    )
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):
            rest = tuple(name for name in names if name not in axes)
            total = partial(jax.lax.psum, axis_name=axes)
            summed = jax.shard_map(total, mesh=mesh, in_specs=P(names), out_specs=P(rest))
            jax.block_until_ready(jax.jit(summed)(ones))
