"""What a config needs and costs on given chips, before any is rented.

For TPUs the real compiler runs on this machine for a topology that is only described, as in
MaxText's train_compile.py; for NVIDIA's chips figures are estimated; for the devices that are here
steps are also timed. Every line of the table says which of it it is.
"""

from __future__ import annotations

import dataclasses
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
from xmae_jax.config import Config, ConfigError, objective_of
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.program import Program, lay_out
from xmae_jax.tasks.film import batch_shapes, film_flops, one_film

GIB = 1 << 30
REMAT = ("none", "dots", "full")
"""From the least computed twice to the most."""


def run(config: Config) -> None:
    """Print the plan; ConfigError if it asks for what cannot be."""
    place = _place(config.plan.topology)
    try:
        mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=place.devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from None
    program = lay_out(config, objective_of(config, OBJECTIVES), mesh)
    told = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"plan of {config.name} on {place.name}: {mesh.size} chips, mesh {told}\n", flush=True)
    point = _point(config, mesh, place)
    print(_table(config, point, program, mesh, place), flush=True)
    if not point.fits and place.chip is not None:
        print(_help(config, point, program, mesh, place))
    if config.plan.search:
        print(_search(config, point, mesh, place))


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


def _place(topology: str | None) -> Place:
    """Find the chips of a name like "v5e:16x16" or "h100:8"."""
    if topology is None:
        device = jax.devices()[0]
        chip, name = chip_of(device.device_kind), f"this machine ({device.device_kind})"
        stats = device.memory_stats() or {}
        if chip is not None and "bytes_limit" in stats:  # the share of it that JAX takes
            chip = chip._replace(hbm=stats["bytes_limit"])
        return Place(name, None, chip, compiles=True, here=True)
    name, _, sides = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", sides):
        raise ConfigError(
            f"config.plan.topology is {topology!r}; write CHIP:AxB or CHIP:N with a chip of"
            f" {', '.join(CHIPS)}"
        )
    chip = CHIPS[name]
    jax.config.update("jax_platforms", "cpu")  # no device of that kind is looked for here
    if not chip.kinds[0].startswith("TPU"):
        count = int(np.prod([int(side) for side in sides.split("x")]))
        devices: list[Any] = [_Stand(i) for i in range(count)]
        share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))  # JAX's default
        chip = chip._replace(hbm=int(share * chip.hbm))
        return Place(topology, devices, chip, compiles=False, here=False)
    # Another process may compile at the same time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"chip_config_name": "megacore"} if name == "v4" else {}  # two cores as one device
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # libtpu missing, or a shape that is not built
        raise ConfigError(
            f"config.plan.topology={topology}: {' '.join(str(error).split())[:200]}; the compiler"
            " comes with pip install -e '.[tpu]'"
        ) from None
    return Place(topology, devices, chip, compiles=True, here=False)


# One point: a batch a chip and a policy, compiled or estimated.


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


def _point(config: Config, mesh: Mesh, place: Place) -> Point:
    shards = sharding.row_shards(mesh)
    if config.rows_at_once % shards:
        raise ConfigError(f"{config.rows_at_once} rows at once do not split over {shards} chips")
    films = config.batch_size // shards
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
            state, used = _bytes(program.shapes, program.shardings), _refused(str(error))
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


def _bytes(shapes: Any, shardings: Any) -> float:
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
    host["mask"][:], host["box"][:] = True, (0, 0, 1, 1)
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
    program = lay_out(config, objective, mesh)
    state = _bytes(program.shapes, program.shardings)
    gradient = _bytes(program.shapes.params, program.shardings.params)
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


# What is printed.


def _table(config: Config, point: Point, program: Program, mesh: Mesh, place: Place) -> str:
    """Write the table: what, value, and which kind of figure it is."""
    objective = objective_of(config, OBJECTIVES)
    chip = place.chip
    memory = "compiled" if place.compiles else "estimated"
    gh, gw = objective.grid
    lines = [("patches", f"{gh * gw:,} = {gh} x {gw}", "config")]
    if "mask" in config.objective:
        lines.append(("visible patches", f"{config.objective['mask']['keep']:,}", "config"))
    for name, part in config.objective.items():
        if isinstance(part, dict) and "heads" in part:
            size = f"{part['depth']} blocks of {part['width']}, {part['heads']} heads of"
            kind = f" ({part['kind']})" if "kind" in part else ""
            lines.append((name + kind, f"{size} {part['width'] // part['heads']}", "config"))
    lines += [
        ("parameters", f"{program.parameters:,}", "counted"),
        ("films a chip and step", f"{point.films:,} (batch {config.batch_size:,})", "config"),
        ("recomputation", point.remat, "config"),
    ]
    parts = film_flops(config)
    total = flops.FORWARD_AND_BACKWARD * sum(parts.values())
    lines += [
        (f"forward FLOPs a film: {n}", f"{v / 1e9:,.0f} G", "counted") for n, v in parts.items()
    ]
    lines += [("model FLOPs a film and step", f"{total / 1e12:.2f} T (3 x forward)", "counted")]
    state = _bytes(program.shapes, program.shardings)
    lines += [
        ("memory: state", _gib(state), "counted"),
        ("memory: arguments", _gib(point.arguments), memory),
        ("memory: temporaries", _gib(point.temporaries), memory),
        (
            "memory: peak a chip",
            _gib(point.peak) + (f" of {_gib(chip.hbm)}" if chip else ""),
            memory,
        ),
    ]
    for moved in point.traffic.collectives if point.traffic else ():
        what = f"{moved.times} x, {moved.bytes / 1e9:.3f} GB among {moved.group} chips"
        lines.append((f"collective: {moved.kind}", what, "compiled"))
    if chip is not None and point.fits:
        lines += _speed(config, point, mesh, chip, total)
        if point.traffic is None:
            lines.append(("roofline: memory, links", "not looked at", "estimated"))
    if point.step_seconds is not None:
        speed = config.batch_size / point.step_seconds
        what = f"{point.step_seconds:.3f} s, {speed:.2f} images/s"
        if chip is not None:
            what += f", MFU {speed * total / chip.flops / mesh.size:.2f}"
        lines.append(("a step", what, "measured"))
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    rows = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in lines]
    fits = ("yes" if chip else "unknown, as this device's memory is") if point.fits else "no"
    return "\n".join([*rows, f"fits: {fits}"])


def _speed(config: Config, point: Point, mesh: Mesh, chip: Chip, total: float) -> list[tuple]:
    """Write the roofline and what follows from it."""
    seconds = point.roofline(config, chip, mesh)
    step = max(seconds.values())
    speed = config.batch_size / step
    hours = config.total_steps * step / 3600 * mesh.size
    limits = {
        "compute": f"{chip.flops / 1e12:,.0f} TFLOP/s bfloat16, units of {chip.unit}",
        "memory": f"{chip.hbm_speed / 1e12:.2f} TB/s",
        "links": f"{chip.link_speed / 1e9:,.0f} GB/s along one ring",
    }
    lines = [
        (f"roofline: {name}", f"{value:.3f} s at {limits[name]}", "estimated")
        for name, value in seconds.items()
    ]
    lines += [
        ("roofline: a step", f"{step:.3f} s, bound by {max(seconds, key=seconds.__getitem__)}",
         "estimated"),
        ("images/s", f"{speed:,.0f}, MFU {speed * total / chip.flops / mesh.size:.2f}",
         "estimated"),
        ("the run", f"{config.total_steps:,} steps, {hours:,.0f} chip-hours", "estimated"),
    ]  # fmt: skip
    if config.plan.price is not None:
        lines.append(("cost", f"{hours * config.plan.price:,.0f}", "estimated"))
    return [*lines, ("chip's figures", chip.source, "given")]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _help(config: Config, point: Point, program: Program, mesh: Mesh, place: Place) -> str:
    """Say by how much a config does not fit, and what would help."""
    assert place.chip is not None
    over = point.peak - place.chip.hbm
    state = _bytes(program.shapes, program.shardings)
    lines = [f"over by {_gib(max(over, 0))} a chip. What would help:"]
    if config.remat != "full":
        lines.append("  --config.remat=full (or dots): compute twice what is not kept")
    if config.mesh.fsdp == 1 and state > over / 2:
        share = state * (1 - 1 / sharding.row_shards(mesh))
        lines.append(
            f"  --config.mesh.data=1 --config.mesh.fsdp=-1: splits the state, {_gib(share)} a chip"
        )
    shards = sharding.row_shards(mesh)
    at_once, films = config.rows_at_once // shards, config.batch_size // shards
    room = int((place.chip.hbm - state) * at_once // max(point.peak - state, 1))
    fewer = max((d for d in range(1, at_once) if films % d == 0 and d <= room), default=None)
    if fewer is not None:
        lines.append(
            f"  {fewer} films a chip at once instead of {at_once}, or a smaller batch:"
            f" --config.micro_batch_size={fewer * shards}"
        )
    return "\n".join(lines)


def _search(config: Config, first: Point, mesh: Mesh, place: Place) -> str:
    """Find the cheapest recomputation for the config's batch, and the largest batch a chip.

    Guesses come from programs compiled with less effort, which takes a third of the time;
    what is reported was compiled as a run would.
    """
    if place.chip is None:
        raise ConfigError("config.plan.search: this device's memory is not known")
    shards, limit = sharding.row_shards(mesh), 0.975 * place.chip.hbm
    whole = dataclasses.replace(config.data, mixture=None)  # its counts are of one batch size
    known: dict[tuple, Point] = {}
    print("\nsearch:", flush=True)

    def larger(films: int) -> Config:
        """Take a batch of so many films a chip, without accumulation, and recompute the most."""
        return dataclasses.replace(
            config, remat=REMAT[-1], batch_size=films * shards, micro_batch_size=None, data=whole
        )

    def at(changed: Config, *, quick: bool = False) -> Point:
        quick = quick and place.compiles
        key = (changed.remat, changed.batch_size, changed.rows_at_once, quick)
        if key not in known:
            jax.config.update("jax_optimization_level", "O1" if quick else "UNKNOWN")
            point = known[key] = _point(changed, mesh, place)
            told = "fits" if point.fits else "does not fit"
            how = ", quickly compiled" * quick
            at_once = changed.rows_at_once // shards
            how = f", {at_once} at once" * (at_once < point.films) + how
            print(f"  {point.remat}, {point.films} films a chip: {_gib(point.peak)}, {told}{how}",
                  flush=True)  # fmt: skip
        return known[key]

    known[config.remat, config.batch_size, config.rows_at_once, False] = first
    cheapest = None
    for remat in REMAT:
        changed = dataclasses.replace(config, remat=remat)
        if at(changed, quick=True).fits and at(changed).fits:
            cheapest = changed
            break
    start = config.rows_at_once // shards + 1
    some, more = (at(larger(films), quick=True) for films in (start, start + 4))
    # What a compiler does differently for the two is not to count as a film that costs nothing.
    slope = max((more.peak - some.peak) / 4, 0.25 * some.temporaries / some.films)
    films, largest = start + int((limit - some.peak) // slope), None
    while films > 0 and largest is None:
        point = at(larger(films))
        largest = larger(films) if point.fits else None
        films -= max(1, int(-(-(point.peak - limit) // slope)))
    lines = [""]
    for what, changed in (("cheapest recomputation", cheapest), ("largest batch found", largest)):
        if changed is None:
            lines.append(f"{what}: none fits")
            continue
        point = at(changed)
        speed = changed.batch_size / max(point.roofline(changed, place.chip, mesh).values())
        lines.append(
            f"{what}: {point.remat}, {point.films} films a chip (batch {changed.batch_size:,}),"
            f" {_gib(point.peak)}, {speed:,.0f} images/s by the roofline"
        )
    return "\n".join(lines)
