"""What a config needs and costs on given chips, before any is rented: a table and a search.

Every line of the table says whether its figure is compiled, measured or estimated, see `point.py`.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
from jax.sharding import Mesh

from xmae_jax import flops, sharding
from xmae_jax.chips import Chip
from xmae_jax.config import Config, ConfigError, objective_of
from xmae_jax.models.layers import Remat
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.program import Program, lay_out
from xmae_jax.tasks.film import film_flops
from xmae_jax.tasks.point import Place, Point, bytes_of, check_rows, find_place, point_of
from xmae_jax.tasks.text import with_decoder

GIB = 1 << 30
REMAT = get_args(Remat)
"""From the least computed twice to the most."""


def run(config: Config) -> None:
    """Print the plan; ConfigError if it asks for what cannot be."""
    config = with_decoder(config, None)
    place = find_place(config.plan.topology)
    if config.plan.search and place.chip is None:
        raise ConfigError(
            "config.plan.search: the memory of this device is not known; name others by"
            " --config.plan.topology"
        )
    try:
        mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=place.devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from None
    program = lay_out(config, objective_of(config, OBJECTIVES), mesh)
    check_rows(config, mesh)
    told = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    how = "; compiling, which takes minutes" * place.compiles
    print(f"plan of {config.name} on {place.name}: mesh {told}{how}\n", flush=True)
    point = point_of(config, mesh, place)
    print(_table(config, point, program, mesh, place), flush=True)
    if not point.fits and place.chip is not None:
        print(_help(config, point, program, mesh, place))
    if config.plan.search:
        print(_search(config, point, mesh, place))


def _table(config: Config, point: Point, program: Program, mesh: Mesh, place: Place) -> str:
    """Write the table: what, value, and which kind of figure it is."""
    objective = objective_of(config, OBJECTIVES)
    chip = place.chip
    memory = "compiled" if place.compiles else "estimated"
    gh, gw = objective.grid
    lines = [("patches", f"{gh * gw:,} = {gh} x {gw}", "config")]
    if "mask" in config.objective:
        lines.append(("visible patches", f"{config.objective['mask']['keep']:,}", "config"))
    for name, part in (config.objective | config.objective.get("head", {})).items():
        if isinstance(part, dict) and "depth" in part and "heads" in part:
            size = f"{part['depth']} blocks of {part['width']}, {part['heads']} heads of"
            kind = f" ({part['kind']})" if "kind" in part else ""
            wide = part.get("head_width", part["width"] // part["heads"])
            lines.append((name + kind, f"{size} {wide}", "config"))
    if config.data.text is not None:
        told = f"{config.data.text.views}, which count as one film below"
        lines.append(("films of a study", told, "config"))
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
    state = bytes_of(program.shapes, program.shardings)
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
    state = bytes_of(program.shapes, program.shardings)
    lines = [f"over by {_gib(max(over, 0))} a chip. What would help:"]
    if config.remat != "full":
        lines.append("  --config.remat=full (or dots): compute twice what is not kept")
    if config.mesh.fsdp == 1 and state > over / 2:
        share = state * (1 - 1 / sharding.row_shards(mesh))
        lines.append(
            f"  --config.mesh.data=1 --config.mesh.fsdp=-1: splits the state, {_gib(share)} a chip"
        )
    print("\n".join(lines), flush=True)
    # How much less fewer films need cannot be read from a program that did not fit: try.
    shards = sharding.row_shards(mesh)
    at_once, films = config.rows_at_once // shards, config.batch_size // shards
    room = (place.chip.hbm - state) * at_once // max(point.peak - state, 1)
    for fewer in (d for d in range(at_once - 1, 0, -1) if films % d == 0 and d <= room):
        changed = dataclasses.replace(config, micro_batch_size=fewer * shards)
        if _look(changed, mesh, place, quick=True).fits:
            return f"  --config.micro_batch_size={fewer * shards}: {fewer} films a chip at once"
    return "  more chips along --config.mesh.fsdp or --config.mesh.tensor, or smaller films"


def _look(config: Config, mesh: Mesh, place: Place, *, quick: bool) -> Point:
    """Compile a variant, `quick` with less effort in a third of the time; say what it needs."""
    jax.config.update("jax_optimization_level", "O1" if quick else "UNKNOWN")
    point = point_of(config, mesh, place)
    at_once = config.rows_at_once // sharding.row_shards(mesh)
    told = f"    {point.remat}, {point.films} films a chip" + f", {at_once} at once" * (
        at_once < point.films
    )
    how = ", quickly compiled" * (quick and place.compiles)
    fits = "fits" if point.fits else "does not fit"
    print(f"{told}: {_gib(point.peak)}, {fits}{how}", flush=True)
    return point


def _search(config: Config, first: Point, mesh: Mesh, place: Place) -> str:
    """Find the cheapest recomputation for the config's batch, and the largest batch a chip.

    Guesses come from programs compiled with less effort, which takes a third of the time;
    what is reported was compiled as a run would.
    """
    assert place.chip is not None
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
            known[key] = _look(changed, mesh, place, quick=quick)
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
            lines.append(f"{what}: there is none that fits")
            continue
        point = at(changed)
        speed = changed.batch_size / max(point.roofline(changed, place.chip, mesh).values())
        lines.append(
            f"{what}: {point.remat}, {point.films} films a chip (batch {changed.batch_size:,}),"
            f" {_gib(point.peak)}, {speed:,.0f} images/s by the roofline"
        )
    return "\n".join(lines)
