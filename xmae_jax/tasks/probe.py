"""A frozen probe: a grid of heads on features computed once, the best one of them trained again.

1. Features of every film of the training and the validation split, kept in a cache.
2. A grid of rates and decays on the training split, all at once: `grid/`, an ordinary run.
3. The member of the best mean score on the validation split wins: `probe.json`.
4. Its rate and decay on both splits, from the start and for as many steps: `refit/`, likewise.
   A start from the winner's parameters, as CheXFound's code has it, would give a chosen rate more
   steps than it was chosen for. Where `data` asks for fewer labels than there are, the winner
   itself is kept, since all of the validation split would be more than were asked for.
5. Encoder and head become the checkpoint of the run directory, an ordinary one of `supervised`.
6. The test split is read for the first time, and scored.

Interrupted and started again it goes on with the first of these that is not done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmae_jax import checkpoint, hosts, infer, rng, train, writers
from xmae_jax.config import Config, ConfigError, to_json
from xmae_jax.data.batch import Source
from xmae_jax.data.features import FeatureView, standardisation
from xmae_jax.data.index import read_index
from xmae_jax.data.records import Records
from xmae_jax.digest import sha256
from xmae_jax.evaluators.classification import Classification
from xmae_jax.evaluators.page import results_page
from xmae_jax.objectives.probe import Probe, fold
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import merge, split
from xmae_jax.program import lay_out
from xmae_jax.rundir import Run
from xmae_jax.scores.predictions import from_csv
from xmae_jax.tasks.features import Cache, encoder_digest, encoder_params, what_to_read
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.members import best_of, judge, table
from xmae_jax.tasks.phase import Data, Protocol
from xmae_jax.tasks.split import Split, check_both_sides, class_stats
from xmae_jax.typing import Params, TrainState


def with_encoder(config: Config) -> Config:
    """Take the encoder's settings from the run that `init_from` names, if it is a run."""
    if config.init_from is None or not checkpoint.step_directories(config.init_from):
        return config
    saved = Path(config.init_from) / "config.json"
    try:
        there = json.loads(saved.read_text())
        encoder, size = there["objective"].get("encoder"), there["image_size"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"config.init_from: {saved}: {error}") from None
    if encoder is None:
        raise ConfigError(f"config.init_from: the objective of {config.init_from} has no encoder")
    if size != config.image_size and hosts.is_first():
        print(f"note: {config.init_from} saw films of {size} px, and here they are of"
              f" {config.image_size}")  # fmt: skip
    if encoder == config.objective.get("encoder"):
        return config
    sizes = ", ".join(f"{name} {encoder[name]}" for name in ("width", "depth", "patch_size"))
    if hosts.is_first():
        print(f"the encoder is that of {config.init_from}, not of the config: {sizes}")
    return dataclasses.replace(config, objective={**config.objective, "encoder": encoder})


def run(
    config: Config,
    objective: Supervised,
    *,
    training: Split,
    held_out: Split,
    mesh: jax.sharding.Mesh,
    run: Run,
    permit: train.Permit,
    leaks: dict[str, int],
) -> None:
    """Go through the protocol, or through what of it is left to do."""
    say = print if hosts.is_first() else lambda *_, **__: None
    if hosts.from_first((run.workdir / "final.json").is_file):
        say(f"done before: {run.workdir}")
        return
    tested = tested_split(config, held_out, say)
    splits, refit = (training, held_out), not training.subset.few
    check_both_sides(held_out)
    films, more = (Data(of.records, of.chosen) for of in splits)
    if refit:  # what would only then be found wrong
        films.with_rows_of(more).plan(config)
    _begin(config, run)
    params = _encoder(config, objective, mesh, say)
    count = sum(map(len, (*films.sources, *more.sources)))
    reads = what_to_read(config, objective, films=count, say=say)
    sources: Sequence[Sequence[Source]] = [of.records for of in splits]
    moments, view = None, view_of(config, objective, train=False)
    if reads != "films":
        folder = Path(config.cache.dir) if config.cache.dir else run.workdir / "cache"
        cache = Cache(config, objective, params, mesh, folder, say)
        with jax.set_mesh(mesh):
            cached = [cache.sources(of.film_records, patches=reads == "patches") for of in splits]
        if reads == "pooled":
            moments = standardisation(cached[0], Data(cached[0], training.chosen).rows)
        sources, view = cached, FeatureView(objective.findings, *(moments or (None, None)))
    train_data, val_data = (Data(s, of.chosen) for s, of in zip(sources, splits, strict=True))
    encoder = encoder_digest(params) if reads == "films" else None
    protocol = Protocol(config, objective, mesh, run, permit, leaks, reads, encoder, view, say)
    both = dataclasses.replace(objective, class_stats=class_stats(*splits)) if refit else None
    head, val = _head(protocol, train_data, val_data, refit=both)
    if moments is not None:
        head = fold(objective, head, *moments)
    state = _assemble(protocol, {"encoder": params["encoder"], "head": head})
    if tested is not None:
        _test(protocol, state, held_out, val, tested=tested)
    final = {"step": config.total_steps, "sha256": sha256(state)}
    if hosts.is_first():
        writers.write_atomic(run.workdir / "final.json", json.dumps(final, indent=1) + "\n")
    say(f"done: {run.workdir}")


def refitted(workdir: Path) -> bool:
    """Tell whether a run's head was trained on the validation split too."""
    told = workdir / "probe.json"
    return told.is_file() and json.loads(told.read_text())["refitted"]


def _begin(config: Config, run: Run) -> None:
    """Put on record what the run directory holds."""
    digest = run.digest(to_json(config))
    if hosts.is_first():
        if digest not in run.configs:
            dataclasses.replace(run, configs=(*run.configs, digest)).write()
        writers.write_atomic(run.workdir / "config.json", to_json(config))


def _encoder(config: Config, objective: Supervised, mesh: jax.sharding.Mesh, say: Any) -> Params:
    """Make the parameters, with the encoder of `init_from`."""
    shapes = jax.eval_shape(objective.init, rng.key(config.seed, "init"))
    if "encoder" in split(shapes, config.optim.freeze)[0]:
        raise ConfigError(f"config.optim.freeze {config.optim.freeze} leaves the encoder free, and"
                          " a probe's is frozen: add 'encoder/.*'")  # fmt: skip
    return encoder_params(config, objective, mesh, say)


def _head(
    protocol: Protocol, train_data: Data, val_data: Data, *, refit: Supervised | None
) -> tuple[Params, list[infer.Row]]:
    """Return the head that is kept, and what the grid's winner said of the validation split.

    refit: the objective of both splits; None keeps the winner.
    """
    config, objective = protocol.config, protocol.objective
    probe = config.probe
    assert probe is not None and config.data.eval_split is not None
    grid, count = probe.grid, len(probe.grid.members)
    protocol.say(f"grid: {len(grid.blr)} rates x {len(grid.weight_decay)} decays at once")
    state = protocol.phase("grid", train_data, members=count, grid=grid, blr=max(grid.blr))
    params, frozen = state["params"], state.get("frozen", {})
    rows = [
        {name: row[name] for name in ("logits", "labels", "id")}
        for row in protocol.predict(
            Probe(objective, protocol.reads, count).members_logits,
            TrainState(0, params, frozen, {}, {}, {}),
            val_data,
            protocol.view,
        )
    ]
    logits, labels = (np.stack([row[name] for row in rows]) for name in ("logits", "labels"))
    members = judge(grid, state["guard"]["alive"], logits, labels)
    best = best_of(members, probe.metric)
    if best is None:
        raise ConfigError(
            f"no member of the grid has a score on {config.data.eval_split!r}: none stayed finite,"
            " or of no finding both sides could be read"
        )
    split, batch_size = config.data.eval_split, config.batch_size
    protocol.say(table(members, best, batch_size=batch_size, split=split))
    if hosts.is_first():
        told = {
            "metric": probe.metric,
            "split": split,
            "winner": best,
            "refitted": refit is not None,
            "members": [dataclasses.asdict(member) for member in members],
        }
        path = protocol.run.workdir / "probe.json"
        writers.write_atomic(path, json.dumps(told, indent=1) + "\n")
    head = jax.tree.map(lambda p: p[best], merge(params, frozen)["head"])
    if refit is not None:
        blr, decay = grid.members[best]
        decays = {"weight_decay": decay, "weight_decay_end": decay}
        both = train_data.with_rows_of(val_data)
        protocol = dataclasses.replace(protocol, objective=refit)
        state = protocol.phase("refit", both, members=None, blr=blr, **decays)
        head = merge(state["params"], state.get("frozen", {}))["head"]
    return head, [{**row, "logits": row["logits"][best]} for row in rows]


def _assemble(protocol: Protocol, params: Params) -> TrainState:
    """Save encoder and head as the run's own checkpoint, with moments that are new."""
    config, objective, run = protocol.config, protocol.objective, protocol.run
    program = lay_out(config, objective, protocol.mesh)
    where = merge(program.shardings.params, program.shardings.frozen)
    with jax.set_mesh(protocol.mesh):
        trained, frozen = split(jax.device_put(params, where), config.optim.freeze)
        make = jax.jit(program.init, out_shardings=program.shardings)
        state = dataclasses.replace(
            make(rng.key(config.seed, "init")),
            step=jax.device_put(jnp.int32(config.total_steps), program.shardings.step),
            params=trained,
            frozen=frozen,
            extra=jax.jit(objective.start, out_shardings=program.shardings.extra)(trained),
        )
        digest = run.digest(to_json(config))
        saver = checkpoint.Checkpoints(
            run.workdir, run=run, config=digest, keep=config.checkpoint_keep
        )
        with contextlib.closing(saver):
            saver.save(config.total_steps, state)
            problem = saver.settle()
    if problem:
        raise checkpoint.CheckpointError(f"{run.workdir}: {problem}")
    return state


def tested_split(config: Config, held_out: Split, say: Any) -> Split | None:
    """Open the test split of the sources that have one; None where none has."""
    there = [Records(path, "test") for path in config.data.paths if "test" in read_index(path)]
    if not there:
        say("there is no split 'test': nothing is tested")
        return None
    tested = Split(there, "test", held_out.subset)
    _ = tested.chosen  # raises where it is empty, before anything is trained
    return tested


def _test(
    protocol: Protocol,
    state: TrainState,
    held_out: Split,
    val: list[infer.Row],
    *,
    tested: Split,
) -> None:
    """Score the test split.

    Thresholds are chosen on what the grid's winner said of the validation split, which it had not
    seen; the model that is tested was trained on it.
    """
    config, objective, name = protocol.config, protocol.objective, "test"
    view = view_of(config, objective, train=False)
    data = Data(tested.records, tested.chosen)
    evaluator = Classification(
        findings=objective.findings,
        entries={"val": held_out.entries, name: tested.entries},
        train_positive=np.array(objective.counts[0]),
    )
    rows = protocol.predict(objective.classify, state, data, view)
    metrics, predictions = evaluator.evaluate({"val": val.__iter__, name: lambda: rows})
    metrics["about"] = {
        "data": list(config.data.paths),
        "run": str(protocol.run.workdir),
        "step": config.total_steps,
        "leaks": protocol.leaks,
        "unreadable_films": len(tested.films) - metrics["films"],
    }
    folder = protocol.run.workdir / "eval" / "classification_test" / f"step_{config.total_steps}"
    if hosts.is_first():
        writers.write_atomic(folder / "predictions.csv", predictions)
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        page = results_page(from_csv(predictions, name="predictions.csv"), metrics)
        writers.write_atomic(folder / "report.html", page)
    protocol.say(evaluator.table(metrics))
