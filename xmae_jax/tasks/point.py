"""One choice of batch and recomputation on given chips: what it needs, compiled or estimated.

For TPUs the real compiler runs on this machine for a topology that is only described, as in
MaxText's train_compile.py; for NVIDIA's chips figures are estimated; for the devices that are here
steps are also timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from xmae_jax import flops, hlo, rng, sharding
from xmae_jax.chips import CHIPS, Chip, chip_of
from xmae_jax.config import Config, ConfigError, nearest, objective_of
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.program import Program, lay_out
from xmae_jax.tasks.film import batch_shapes, one_film


@dataclasses.dataclass(frozen=True)
class Place:
    """Chips to plan for."""

    name: str
    devices: list[Any] | None
    """None plans for the devices that are here."""
    chip: Chip | None
    """None if its limits are not known."""
    compiles: bool
    here: bool


class _Stand:
    """A device that is neither here nor described: enough to lay out a mesh."""

    platform, process_index, device_kind = "gpu", 0, "described"

    def __init__(self, id_: int):
        self.id = id_


def _read_topology(text: str) -> tuple[Chip, list[int]]:
    """Read "v5e:16x16" or "h100:8"; ConfigError says how it is to be written."""
    name, _, rest = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        ways = (f"{c.name}:{'x'.join('ABC'[: len(c.largest)]) or 'N'}" for c in CHIPS.values())
        raise ConfigError(
            f"config.plan.topology is {text!r}{nearest(name, CHIPS)}; write one of"
            f" {', '.join(ways)}"
        )
    sides = [int(side) for side in rest.split("x")] if re.fullmatch(r"\d+(x\d+)*", rest) else []
    # Its compiler aborts on sides that are too many or too long.
    fits = all(0 < a <= b for a, b in zip(sorted(sides), chip.largest or sides, strict=False))
    if len(sides) != (len(chip.largest) or 1) or not fits:
        way = (
            f"{len(chip.largest)} sides, at most {'x'.join(map(str, chip.largest))}"
            if chip.largest
            else "a number of cards"
        )
        raise ConfigError(f"config.plan.topology is {text!r}; {name} takes {way}")
    return chip, sides


def find_place(topology: str | None) -> Place:
    """Find the chips of a name like "v5e:16x16" or "h100:8"."""
    if topology is None:
        device = jax.devices()[0]
        chip, name = chip_of(device.device_kind), f"this machine ({device.device_kind})"
        stats = device.memory_stats() or {}
        if chip is not None and "bytes_limit" in stats:  # the share of it that JAX takes
            chip = chip._replace(hbm=stats["bytes_limit"])
        return Place(name, None, chip, compiles=True, here=True)
    chip, sides = _read_topology(topology)
    jax.config.update("jax_platforms", "cpu")  # no device of that kind is looked for here
    if not chip.largest:
        devices: list[Any] = [_Stand(i) for i in range(sides[0])]
        share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))  # JAX's default
        chip = chip._replace(hbm=int(share * chip.hbm))
        return Place(topology, devices, chip, compiles=False, here=False)
    # Another process may compile at the same time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # v4: two cores as one device.
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # libtpu missing, or a shape that is not built
        missing = importlib.util.find_spec("libtpu") is None
        told = "the compiler comes with pip install -e '.[tpu]'" if missing else "no such slice"
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"config.plan.topology={topology}: {told} ({text})") from None
    return Place(topology, devices, chip, compiles=True, here=False)


@dataclasses.dataclass(frozen=True)
class Point:
    """What one choice of batch and recomputation needs."""

    films: int
    """A chip and step; with `tensor` above 1, per group of chips that share rows."""
    remat: str
    fits: bool
    arguments: float
    """Bytes a chip: the state and a batch."""
    temporaries: float
    peak: float
    traffic: hlo.Traffic | None
    step_seconds: float | None
    """Measured."""

    def roofline(self, config: Config, chip: Chip, mesh: Mesh) -> dict[str, float]:
        """Return the seconds a step that compute, memory and links each need by themselves."""
        fn, args = one_film(dataclasses.replace(config, remat=self.remat), gradient=True)
        busy = sum(flops.matmul_flops(fn, *args, unit=chip.unit).values())
        share = mesh.size // sharding.row_shards(mesh)
        seconds = {"compute": self.films * busy / share / chip.flops}
        if self.traffic is not None:
            seconds["memory"] = self.traffic.memory / chip.hbm_speed
            sent = sum(moved.sent for moved in self.traffic.collectives)
            seconds["links"] = sent / chip.link_speed
        return seconds


def check_rows(config: Config, mesh: Mesh) -> None:
    """Raise ConfigError if the rows of a step do not split over the chips."""
    shards = sharding.row_shards(mesh)
    if config.rows_at_once % shards:
        key = "batch_size" if config.micro_batch_size is None else "micro_batch_size"
        raise ConfigError(
            f"config.{key}: {config.rows_at_once} rows do not split over {shards} chips"
        )


def point_of(config: Config, mesh: Mesh, place: Place) -> Point:
    """Compile or estimate a config on a mesh."""
    films = config.batch_size // sharding.row_shards(mesh)
    return (compiled_point if place.compiles else _estimated)(config, mesh, place, films)


def compiled_point(
    config: Config, mesh: Mesh, place: Place, films: int, *, steps: int = 3
) -> Point:
    """Compile the whole step, and time `steps` of it if its devices are here."""
    objective = objective_of(config, OBJECTIVES)
    program = lay_out(config, objective, mesh)
    batch = batch_shapes(config, objective, config.batch_size)
    with jax.set_mesh(mesh):
        lowered = program.step.lower(program.shapes, batch)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            state, used = bytes_of(program.shapes, program.shardings), _refused(str(error))
            if used is None:
                raise
            return Point(films, config.remat, False, state, used, state + used, None, None)
        memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes + made + memory.generated_code_size_in_bytes
    fits = place.chip is None or arguments + temporaries <= place.chip.hbm
    seconds = None
    if place.here and fits:
        try:
            seconds = _timed(program, compiled, batch, mesh, steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fits = False
    return Point(
        films=films,
        remat=config.remat,
        fits=fits,
        arguments=arguments,
        temporaries=temporaries,
        peak=arguments + temporaries,
        traffic=hlo.traffic(compiled.as_text(), mesh.size),
        step_seconds=seconds,
    )


def _refused(text: str) -> float | None:
    """Read from a compiler's refusal how many bytes of temporaries it wanted."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", text)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text)
    return float(found[1]) * unit[found[2]] if found else None


def bytes_of(shapes: Any, shardings: Any) -> float:
    """Return the bytes of a tree on one device."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(
        float(np.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, where in leaves
    )


def _timed(program: Program, compiled: Any, batch: Any, mesh: Mesh, steps: int) -> float:
    """Return the median seconds of a few steps on noise, after one that does not count."""
    draw = np.random.default_rng(0)
    host: dict[str, Any] = {name: np.zeros(x.shape, x.dtype) for name, x in batch.items()}
    host["image"] = draw.integers(0, 256, host["image"].shape, dtype=np.uint8)
    host["mask"][:] = True
    if "box" in host:
        host["box"][:] = (0, 0, 1, 1)
    rows = sharding.to_global(host, mesh, len(host["mask"]))
    state = jax.jit(program.init, out_shardings=program.shardings)(rng.key(0, "init"))
    times = []
    for _ in range(steps + 1):
        start = time.monotonic()
        state, log = compiled(state, rows)
        jax.block_until_ready((state, log))
        times.append(time.monotonic() - start)
    return float(np.median(times[1:]))


def _estimated(config: Config, mesh: Mesh, place: Place, films: int) -> Point:
    """Estimate memory from what each block keeps, in bytes a token and width at 16 bit.

    Without recomputation 10 + 24 / t at t devices along `tensor` (Korthikanti et al., arXiv
    2205.05198, equation 2, without the scores); 6 + 16 / t with matrix products and what attention
    gave; 2 for a block's input alone. The block that is being computed needs all of it.
    """
    objective = objective_of(config, OBJECTIVES)
    encoder = getattr(objective, "encoder", None)
    if encoder is not None and encoder.stem == "hybrid":
        raise ConfigError("--task=plan: what a hybrid stem keeps is measured on devices or compiled"
                          " for TPUs, not estimated")  # fmt: skip
    program = lay_out(config, objective, mesh)
    state = bytes_of(program.shapes, program.shardings)
    gradient = bytes_of(program.shapes.params, program.shardings.params)
    gradient *= 1 + (config.rows_at_once < config.batch_size)  # a part's, and their sum
    fn, args = one_film(config, gradient=False)
    blocks = flops.stacks(fn, *args)
    scale = {"bfloat16": 1, "float32": 2}[config.compute_dtype]
    split = sharding.row_shards(mesh) / mesh.size
    kept = {"none": 10 + 24 * split, "dots": 6 + 16 * split, "full": 2}[config.remat]
    film = sum(s.depth * s.tokens * s.width for s in blocks) * kept * scale
    film += max(s.tokens * s.width for s in blocks) * (10 + 24 * split) * scale
    temporaries = gradient + film * films * config.rows_at_once / config.batch_size
    peak = state + temporaries
    assert place.chip is not None
    return Point(films, config.remat, peak <= place.chip.hbm, state, temporaries, peak, None, None)
