"""Train, or resume: config to objective, data and evaluators, then the loop.

Everything that can be wrong with a config is found here, before the run directory is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax

from xmae_jax import config as config_lib
from xmae_jax import hosts, init_from, lock, sharding, train
from xmae_jax.checkpoint import step_directories
from xmae_jax.config import Config, ConfigError, ExportConfig, PlanConfig, PredictConfig
from xmae_jax.data import leaks
from xmae_jax.data.batch import LoadStep
from xmae_jax.data.index import Index, read_index
from xmae_jax.data.manifest import data_set, film_format
from xmae_jax.data.plan import Plan, mixture_counts
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.objectives.poisoned import poisoned
from xmae_jax.rundir import OURS, TOKENIZER, Run, new_id, read_run, run_of
from xmae_jax.tasks import probe
from xmae_jax.tasks.evaluators import Seen, evaluators_of
from xmae_jax.tasks.film import mfu_of_speed, view_of
from xmae_jax.tasks.model import named
from xmae_jax.tasks.split import Split, class_stats, open_split
from xmae_jax.tasks.text import text_record, tokenizer_of, with_decoder

NO_DATA = """config.data.path is not set. These two commands make films to try it on:
  python -m data_prep.phantoms --output runs/phantoms/films --count 1000 --seed 0
  python -m data_prep.build --input runs/phantoms/films --output runs/phantoms/shards
then add --config.data.path=runs/phantoms/shards"""


def run(config: Config, workdir: Path, *, allow_config_change: bool, allow_fresh: bool) -> None:
    """Train to the end, or raise what stopped it."""
    if not config.data.paths:
        raise ConfigError(NO_DATA)
    config = of_run(config)
    if "head" in config.objective:
        config = with_decoder(probe.with_encoder(config), workdir)
    objective, training = open_objective(config)
    if hosts.from_first(lambda: config_lib.to_json(config)) != config_lib.to_json(config):
        raise ConfigError(f"process {hosts.own()} was started with another config than process 0")
    if hosts.is_first():
        check_place(config, workdir)
    with lock.acquire(workdir) if hosts.is_first() else contextlib.nullcontext() as held:
        if hosts.from_first(lambda: True) and not (workdir / "lock").exists():
            raise ConfigError(
                f"--workdir={workdir}: process {hosts.own()} does not see there what process 0"
                " writes; it is to lie on a file system that all hosts share"
            )
        check = held.check if held else lambda: None
        permit = train.Permit(fresh=allow_fresh, check_lock=check)
        _run(config, objective, training, workdir, permit, allow_config_change=allow_config_change)


def of_run(config: Config) -> Config:
    """Drop what other tasks are asked, which is no part of a run."""
    return dataclasses.replace(
        config,
        plan=PlanConfig(None, False, None),
        predict=PredictConfig(None, None, 3),
        export=ExportConfig("safetensors", False, None),
    )


def _run(
    config: Config,
    objective: Any,
    training: Split,
    workdir: Path,
    permit: train.Permit,
    *,
    allow_config_change: bool,
) -> None:
    """Open data and devices, and enter the loop."""
    if hosts.is_first():
        refuse_changes(config_changes(config, workdir), workdir, allow=allow_config_change)
    name, findings = config.data.eval_split, training.subset.findings
    held_out = open_split(config, name, findings=findings) if name else None
    tokenizer = tokenizer_of(config, workdir, training)
    copy = None if tokenizer is None else workdir / TOKENIZER
    text = text_record(config, tokenizer)
    listed = [
        {"records": size, "digest": digest, "film": film_format(path), **text}
        for path, size, digest in zip(
            config.data.paths, training.sizes, training.digests, strict=True
        )
    ]
    now = [data_set(path, split=config.data.split) for path in config.data.paths]
    if hosts.from_first(lambda: listed) != listed:
        raise ConfigError(f"config.data.path: process {hosts.own()} has other data than process 0")

    def known() -> dict[str, Any]:
        record = read_run(workdir) or Run(workdir, new_id(), listed, trained_on=[])
        changes = [
            f"data.sources[{i}]: {old} in the run directory, {new} now"
            for i, (old, new) in enumerate(zip_longest(record.sources, listed))
            if old != new
        ]
        refuse_changes(changes, workdir, allow=allow_config_change)
        had = record.trained_on
        if had is not None:
            had = had + [one for one in now if one not in had]
        record = dataclasses.replace(record, sources=listed, trained_on=had)
        if record.configs and record.digest(config_lib.to_json(config)) not in record.configs:
            changes = changes or ["config.json, which is missing or was edited"]
            refuse_changes(changes, workdir, allow=allow_config_change)
        return record.tree()

    record = run_of(workdir, hosts.from_first(known))
    plan = _plan(config, training, record.offsets)
    chosen_on = () if config.probe is None or name is None else (name,)
    leaked = hosts.from_first(lambda: leaks_of(config, *chosen_on))
    mesh = mesh_of(config)

    if config.probe is not None:
        assert held_out is not None  # config.py sees to it
        probe.run(
            config,
            objective,
            training=training,
            held_out=held_out,
            mesh=mesh,
            run=record,
            permit=permit,
            leaks=leaked,
        )
        return

    every = partial(every_row, config, objective, mesh=mesh, limit=config.eval_rows, tokenizer=copy)
    feed = train.Feed(
        plan=plan,
        train=LoadStep(
            plan.ids,
            training.records,
            view_of(config, objective, train=True, tokenizer=copy),
            config.seed,
            slice(None),
            skip=config.data.bad_records == "skip",
        ),
        evaluation=(
            {"train": every(split=training), "val": every(split=held_out)} if held_out else {}
        ),
        leaks=leaked,
    )
    evaluators = {}
    if held_out is not None:
        evaluators = evaluators_of(Seen(config, objective, held_out, tokenizer))
    for path, source in zip(config.data.paths, training.records, strict=True):
        if 0 < source.size < config.image_size and hosts.is_first():
            print(f"note: {path} holds films of {source.size} px; they are enlarged to"
                  f" {config.image_size}")  # fmt: skip
    train.train(
        config,
        objective,
        feed=feed,
        evaluators=evaluators,
        mesh=mesh,
        run=record,
        permit=permit,
        mfu_of_speed=mfu_of_speed(config, mesh),
    )


def every_row(
    config: Config,
    objective: Any,
    *,
    split: Split,
    mesh: jax.sharding.Mesh,
    limit: int,
    tokenizer: Path | None = None,
) -> LoadStep:
    """Read every film, or study, that is used once, in order, or `limit` of them spread evenly."""
    rows = min(config.rows_at_once, limit)
    rows += -rows % sharding.row_shards(mesh)
    ids = split.every(batch_size=rows, limit=limit)
    view = view_of(config, objective, train=False, tokenizer=tokenizer)
    skip = config.data.bad_records == "skip"
    return LoadStep(ids, split.records, view, config.seed, slice(None), skip=skip)


def open_objective(config: Config) -> tuple[Any, Split]:
    """Build the objective, poisoned if so wished, and open what it is trained on."""
    objective = named(config_lib.objective_of(config, OBJECTIVES))
    _poisoned(config, objective)  # what is wrong with it is told before a file is opened
    findings = getattr(objective, "findings", ())
    training = open_split(config, config.data.split, findings=findings)
    if hosts.is_first() and (text := training.describe()):
        print(text)
    if findings:
        stats = class_stats(training)
        objective = dataclasses.replace(objective, class_stats=stats)
        for name, present, of in zip(findings, *stats[:2], strict=True):
            if hosts.is_first() and not 0 < present < of:
                print(f"note: {name} is present in {present:.0f} of the {of:.0f} training films"
                      " that know it")  # fmt: skip
    return _poisoned(config, objective), training


def _poisoned(config: Config, objective: Any) -> Any:
    """Let an objective fail on demand, if so wished."""
    if config.debug.poison_step is None:
        return objective
    try:
        return poisoned(objective, config.debug.poison_step)
    except ValueError as error:
        raise ConfigError(f"config.debug.poison_step: {error}") from None


def check_place(config: Config, workdir: Path) -> None:
    """Refuse a directory that holds something else, and a start from nothing."""
    starts = {"init_from": config.init_from}
    starts["objective.decoder_from"] = config.objective.get("decoder_from")
    for key, start in starts.items():
        if start is not None and not step_directories(workdir):
            try:
                init_from.check(start)
            except ValueError as error:
                raise ConfigError(f"config.{key}: {error}") from None
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir}: not a directory")
    names = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    if names and not names & set(OURS):
        raise ConfigError(f"--workdir={workdir}: not empty, and no run directory")


def mesh_of(config: Config) -> jax.sharding.Mesh:
    """Lay out the mesh, see that rows split over it and each process has a part, and connect."""
    if jax.process_count() > 1 and not hosts.several():
        raise ConfigError(f"one of {jax.process_count()} processes: start it with --distributed")
    try:
        mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
        sharding.host_rows(mesh, config.rows_at_once)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from None
    if hosts.several() and mesh.size < jax.device_count():
        raise ConfigError(f"config.mesh: {mesh.size} of {jax.device_count()} devices; with several"
                          " processes it takes all of them")  # fmt: skip
    if hosts.several():
        sharding.connect(mesh)
    return mesh


def leaks_of(config: Config, *more: str) -> dict[str, int]:
    """Count what stands in the training split and in any other; Leaked unless that is allowed.

    more: splits that are compared with all others too. Each two splits count once.
    """
    indices = [read_index(path) for path in config.data.paths]
    splits = (config.data.split, *more)
    counts: Counter[str] = Counter()
    for i, split in enumerate(splits, 1):
        seen = [index[split] for index in indices]
        rest = [of for index in indices for name, of in index.items() if name not in splits[:i]]
        counts.update(refuse_leaks(seen, rest, allow=config.data.leaks == "allow"))
    if "other_keys" in counts:  # of the data sets, whatever the split
        counts["other_keys"] = 1
    return dict(counts)


def refuse_leaks(
    train: Sequence[Index], held_out: Sequence[Index], *, allow: bool
) -> dict[str, int]:
    """Count what stands on both sides, by kind; Leaked unless that is allowed.

    Reports that are the same word for word are counted and told, never refused.
    """
    problems = [told] if (told := leaks.other_keys([*train, *held_out])) else []
    counts = {"other_keys": 1} if problems else {}
    found = leaks.find_leaks(train, held_out)
    if found:
        problems.append(leaks.describe(found))
        counts |= Counter(leak.kind for leak in found)
    if problems and not allow:
        way = "build one with --exclude of the other" if len(train) > 1 else "--duplicates=drop"
        problems.append(f"{way}, or --config.data.leaks=allow (docs/data.md)")
        raise leaks.Leaked("\n".join(problems))
    if problems:
        print("\n".join(problems))
    if same := leaks.same_reports(train, held_out):
        print(f"note: {leaks.describe_same(same)}")
        counts["same report"] = same
    return counts


def _plan(config: Config, training: Split, offsets: tuple[tuple[int, int], ...]) -> Plan:
    """Set the order of data."""
    sizes = training.sizes
    counts = config.data.mixture or mixture_counts(sizes, config.batch_size)
    if sum(counts) != config.batch_size:
        raise ConfigError(f"batch_size {config.batch_size} is less than a row for each source")
    if config.data.mixture is not None and 0 in sizes:
        raise ConfigError("config.data.mixture: of a source no film is used; set None")
    return Plan(config.seed, sizes, counts, training.digests, offsets, training.chosen)


def config_changes(config: Config, workdir: Path) -> list[str]:
    """List what differs from the config that the run began with."""
    saved = workdir / "config.json"
    if not saved.is_file():
        return []
    try:
        return config_lib.differences(saved.read_text(), config_lib.to_json(config))
    except ValueError as error:
        raise ConfigError(f"{saved} is not JSON: {error}") from None


def refuse_changes(changes: list[str], workdir: Path, *, allow: bool) -> None:
    """Stop where config or data are not those with which the run began."""
    listed = "\n  ".join(changes)
    if changes and not allow:
        raise ConfigError(
            f"{workdir} was begun with another config or other data:\n  {listed}\n"
            "Go on with --allow_config_change, or choose another --workdir."
        )
    if changes:
        print(f"changed since the run began:\n  {listed}")
