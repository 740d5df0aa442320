"""The mesh, and where every array lies on it; nothing else in the project names a mesh axis.

One device is a mesh of one. Rows of a batch are split over `data` and `fsdp`; parameters, and with
them their moments and averages, over `fsdp` (Rajbhandari et al., ZeRO, arXiv 1910.02054, stage 3)
and `tensor` (Shoeybi et al., Megatron-LM, arXiv 1909.08053, section 3): heads and hidden units.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from xmae_jax.typing import leaf_path

AXES = ("data", "fsdp", "tensor")
RULES = (
    (r".*/blocks/attention/qkv/kernel", P(None, "fsdp", None, "tensor")),
    (r".*/blocks/attention/qkv/bias", P(None, None, "tensor")),
    (r".*/blocks/(attention|cross)/q/kernel", P(None, "fsdp", "tensor")),
    (r".*/blocks/attention/q/bias", P(None, "tensor")),
    (r".*/blocks/(attention|cross)/kv/kernel", P(None, "fsdp", None, "tensor")),
    (r".*/blocks/attention/kv/bias", P(None, None, "tensor")),
    (r".*/blocks/(attention|cross)/out/kernel", P(None, "tensor", "fsdp")),
    (r".*/blocks/mlp/gate_up/kernel", P(None, "fsdp", None, "tensor")),
    (r".*/blocks/mlp/gate_up/bias", P(None, None, "tensor")),
    (r".*/blocks/mlp/up/kernel", P(None, "fsdp", "tensor")),
    (r".*/blocks/mlp/up/bias", P(None, "tensor")),
    (r".*/blocks/mlp/down/kernel", P(None, "tensor", "fsdp")),
    (r".*/blocks/(attention/out|mlp/down|norm\w*)/(bias|scale)", P()),
    (r".*/blocks/gamma[12]", P()),
    (r".*/(embed|patch_embed(/\w+)?|pixels)/kernel", P("fsdp")),
    (r".*/(embed|patch_embed(/\w+)?|pixels|norm)/(bias|scale)", P()),
    (r".*/(cls|mask_token|registers|positions|relative_bias)", P()),
    (r".*/embedding", P(None, "fsdp")),
    (r".*/decoder/out/kernel", P("fsdp")),
    (r".*/(unet|dense|head)/.*", P()),  # ten million parameters: a copy on every device
    (r".*/patch_embed/level\d+/.*", P()),  # twenty million of a ViT-L
    (r"step|guard/\w+|opt_state/.*/?count", P()),
)
"""(regular expression over the paths of the train state, how to split); the first match counts.

Moments and averages lie under the path of their parameter, so a rule holds for all of them.
"""
LOGICAL = {"rows": ("data", "fsdp"), "heads": "tensor", "hidden": "tensor"}
"""Axes of activations by the name that model files give them."""


def make_mesh(
    *, data: int, fsdp: int, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Lay devices out as [data, fsdp, tensor]; one axis may be -1, it takes what the others leave.

    devices: those of this run if None; a described topology's otherwise.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
    told = f"the mesh is {sizes}, and there are {len(devices)} devices"
    if -1 in shape:
        rest = -int(np.prod(shape))
        if len(devices) % rest:
            raise ValueError(told)
        shape[shape.index(-1)] = len(devices) // rest
    if np.prod(shape) > len(devices):
        raise ValueError(told)
    return jax.make_mesh(
        tuple(shape),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[: int(np.prod(shape))],
    )


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Map a tree of shapes to a tree of shardings by `RULES`.

    Raises ValueError that names a leaf which no rule covers, or which does not split evenly.
    """

    def one(path: tuple, leaf: Any) -> NamedSharding:
        name = leaf_path(path)
        spec = next((spec for pattern, spec in RULES if re.fullmatch(pattern, name)), None)
        if spec is None:
            raise ValueError(f"no rule in xmae_jax/sharding.py says how {name} {leaf.shape} lies")
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                raise ValueError(
                    f"{name} has shape {leaf.shape}: {size} does not split over {axis} ="
                    f" {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes)


def _spec(names: Sequence[str | None]) -> P:
    return P(*(LOGICAL[name] if name else None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Fix how an activation lies, a logical name or None for each axis; no-op outside a mesh.

    The compiler would guess otherwise, and on large meshes it replicates.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(names))


def per_device(
    fn: Callable[..., jax.Array],
    inputs: Sequence[Sequence[str | None]],
    output: Sequence[str | None],
) -> Callable[..., jax.Array]:
    """Run `fn` on each device's own part, for kernels that the compiler cannot split."""
    if jax.sharding.get_abstract_mesh().empty:
        return fn
    specs = tuple(_spec(names) for names in inputs)
    return jax.shard_map(fn, in_specs=specs, out_specs=_spec(output), check_vma=False)


def platform() -> str:
    """Return the platform that is compiled for: that of the mesh in use, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split the first axis of a batch; every device along `tensor` has the same rows."""
    return NamedSharding(mesh, P(LOGICAL["rows"]))


def row_shards(mesh: Mesh) -> int:
    """Return into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, P())


def host_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " r"]:
    """Return which rows of a global batch of `rows` this process loads, in order.

    They need not lie together, and another process may load some of them too.
    """
    if rows % row_shards(mesh):
        raise ValueError(f"a batch of {rows} rows does not split over {row_shards(mesh)} devices")
    spans = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
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
