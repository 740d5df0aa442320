"""The training loop, from top to bottom in the order of events.

Shapes come first and arrays later: the state is created, or restored, straight onto its mesh. A
step number in logs, checkpoints and pictures is the number of steps taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import checkpoint, hosts, infer, init_from, rng, sharding, writers
from xmae_jax.clock import Clock
from xmae_jax.config import Config, ConfigError, to_json
from xmae_jax.data.batch import EveryRow, LoadStep, loader
from xmae_jax.data.plan import Plan
from xmae_jax.digest import sha256
from xmae_jax.incidents import Incidents
from xmae_jax.metrics import values
from xmae_jax.optim import merge, split
from xmae_jax.program import lay_out
from xmae_jax.rundir import Run, last_logged, set_aside_after
from xmae_jax.stop import Stop
from xmae_jax.typing import Evaluator, Objective, TrainState


class Preempted(Exception):
    """The run was asked to stop, and has saved; main exits 75."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a run reads: the plan with its rows, and the splits that evaluation sees."""

    plan: Plan
    train: LoadStep
    evaluation: dict[str, LoadStep]
    """"train" and "val", each over an `EveryRow`."""
    leaks: dict[str, int]
    """Pairs of films on both sides that the config allows, by kind; every result tells of them."""


@dataclasses.dataclass(frozen=True)
class Permit:
    """What the command line allows, and who owns the run directory."""

    fresh: bool
    """Start anew where there are checkpoints and none can be used."""
    check_lock: Callable[[], None]
    """Raises Locked if another run has taken over."""


def train(
    config: Config,
    objective: Objective,
    *,
    feed: Feed,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh,
    run: Run,
    permit: Permit,
    mfu_of_speed: float | None,
) -> None:
    """Train to `config.total_steps`, from the newest checkpoint in `run.workdir` that verifies.

    mfu_of_speed: model FLOPs utilisation at one film a second, None where the chip is not known.
    Raises ConfigError if a checkpoint or `init_from` does not fit, CheckpointError if there are
    checkpoints and none can be used, Diverged after ten skipped steps in a row, and Preempted after
    SIGTERM or SIGINT, with the state of that very step saved.
    """
    clock = Clock(
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        mfu_of_speed=mfu_of_speed,
        patience=config.guard.watchdog_seconds,
        report=run.workdir / "debug" / f"stalled{f'_{hosts.own()}' if hosts.own() else ''}.txt",
    )
    checkpoints = checkpoint.Checkpoints(
        run.workdir, run=run, config=run.digest(to_json(config)), keep=config.checkpoint_keep
    )
    # However this ends, a save under way is complete before the directory is given up.
    with Stop() as stop, clock, contextlib.closing(checkpoints), jax.set_mesh(mesh):
        _train(config, objective, feed=feed, evaluators=evaluators, mesh=mesh, run=run,
               permit=permit, stop=stop, clock=clock, checkpoints=checkpoints)  # fmt: skip


def _train(
    config: Config,
    objective: Objective,
    *,
    feed: Feed,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh,
    run: Run,
    permit: Permit,
    stop: Stop,
    clock: Clock,
    checkpoints: checkpoint.Checkpoints,
) -> None:
    say = print if hosts.is_first() else lambda *_, **__: None

    # Every shape, where it lies on the mesh, and the step.
    program = lay_out(config, objective, mesh)
    shardings, optimizer = program.shardings, program.optimizer
    platform = jax.devices()[0].platform
    say(
        f"{config.name}: {program.parameters:,} parameters on {mesh.size} {platform} device(s)"
        + f" of {jax.process_count()} processes" * hosts.several()
    )
    rows = "films" if config.data.text is None else "studies"
    rows = rows if feed.plan.chosen is None else "rows an epoch"
    say(
        f"data: {', '.join(f'{n:,} {rows}' for n in feed.plan.sizes)}; batch {config.batch_size};"
        f" {config.total_steps * config.batch_size / sum(feed.plan.sizes):.1f} epochs"
    )
    warmup = optimizer.warmup_steps
    say(
        f"peak rate {optimizer.peak_lr:.3g} = blr {config.optim.blr:.3g} x batch"
        f" {config.batch_size} / 256; warm-up {warmup} of {config.total_steps} steps"
        + f" (clamped from {config.warmup_steps})"
        * (warmup < config.warmup_steps)
    )

    # The state: restored, or made and perhaps filled from another run.
    clock.alive("restore")
    found, problems, abandoned = None, [], []
    try:
        found = checkpoints.restore(_placed(program.shapes, shardings))
    except checkpoint.NoneUsable as error:
        if not permit.fresh:
            raise checkpoint.CheckpointError(
                f"{error}\nNothing was changed. --allow_fresh starts anew and sets them aside."
            ) from None
        problems, abandoned = [str(error)], error.damaged
    except ValueError as error:
        raise ConfigError(str(error)) from None
    reached = hosts.from_first(lambda: last_logged(run.workdir))
    if found is None and not problems and reached > config.checkpoint_every + 1:
        problems = [f"{run.workdir} has no checkpoint, and its log knows step {reached}"]
        if not permit.fresh:
            raise checkpoint.CheckpointError(f"{problems[0]}; --allow_fresh starts anew")
    this_config = run.digest(to_json(config))
    if found is not None:
        first, state = found.step, found.state
        problems, abandoned = [*found.damaged.values()], [*found.damaged]
        if first > config.total_steps:
            raise ConfigError(
                f"total_steps is {config.total_steps}, and {run.workdir} is at step {first}"
            )
        if found.config != this_config:  # what was a spike before need not be one now
            calm = {name: state.guard[name] * 0 for name in ("taken", "in_a_row")}
            state = dataclasses.replace(state, guard=state.guard | calm)
    else:
        make = jax.jit(program.init, out_shardings=shardings)
        first, state = 0, make(rng.key(config.seed, "init"))
        state, lines = initialise(state, config, objective, shardings)
        for line in lines:
            say(line)
    writer = writers.Writer(run.workdir, active=hosts.is_first())
    if hosts.is_first():
        if this_config not in run.configs:
            dataclasses.replace(run, configs=(*run.configs, this_config)).write()
        writers.write_atomic(run.workdir / "config.json", to_json(config))
    if problems:
        writer.write("event", first, {"event": "fallback", "problems": problems})
        say("\n".join(problems) + f"\nfell back to step {first}")
    for left in (found.foreign if found else {}).values():
        say(f"{left}; left alone")
    for step in abandoned:
        checkpoints.set_aside(step)
        say(f"checkpoint {step} lies in {run.workdir}/checkpoints/abandoned")
    if hosts.is_first() and (found is None or found.config != this_config):
        set_aside_after(run.workdir, first)
    if first:
        writer.write("event", first, {"event": "resume"})
        say(f"resumed at step {first}")

    # Who looks at the state, and at what goes wrong.
    looker = _Looker(config, objective, feed, evaluators, mesh, run.workdir, writer, clock, stop)
    incidents = Incidents(
        run.workdir,
        feed.train,
        writer,
        batch_size=config.batch_size,
        max_bad_share=config.data.max_bad_share,
        epoch=sum(feed.plan.sizes),
        bad_rows=int(state.guard["bad_rows"]),
        alive=np.asarray(state.guard.get("alive", np.zeros(0, bool))),
        say=say,
    )

    # The loop.
    batches = loader(
        dataclasses.replace(feed.train, rows=sharding.host_rows(mesh, config.batch_size)),
        first=first,
        last=config.total_steps,
        workers=config.data.workers,
        threads=config.data.threads,
    )
    if first:
        looker.look(state, first, say)  # what a stop may have kept from being done
    clock.start(first)
    with contextlib.closing(batches):
        for done in range(first + 1, config.total_steps + 1):
            if stop.asked:
                break
            with clock.time("data"):
                host = next(batches)
            state, log = program.step(state, sharding.to_global(host, mesh, config.batch_size))
            incidents.after(done, host, log)
            last = done == config.total_steps
            # A save overlaps with the step after it and no further, so that a kill at any moment
            # costs at most one interval.
            with clock.time("ckpt"):
                _settle(checkpoints, writer, done, say)

            if stop.poll() or done % config.log_every == 0 or last:
                line = _line(log, feed.plan.batch_digest(done - 1)) | clock.read(done)
                writer.write("train", done, line)
                say(clock.progress(done, line))

            if done % config.checkpoint_every == 0 or last:
                permit.check_lock()
                # A step that ends the run is not saved, and what is saved is on record.
                incidents.look()
                with clock.time("ckpt"):
                    checkpoints.save(done, state)
            with clock.time("paused"):
                looker.look(state, done, say)
        incidents.look()

    # The end: what the next run, or a reader, can compare.
    clock.alive("last checkpoint")
    done = int(state.step)
    permit.check_lock()
    if checkpoints.newest != done:
        checkpoints.save(done, state)
    if not _settle(checkpoints, writer, done, say):
        raise checkpoint.CheckpointError(f"{run.workdir}: the last checkpoint does not read back")
    if stop.asked:
        writer.write("event", done, {"event": "preempted"})
        raise Preempted(
            f"stopped at step {done} of {config.total_steps}, and saved; the same command goes on"
        )
    final = {"step": done, "sha256": sha256(state)}
    if hosts.is_first():
        writers.write_atomic(run.workdir / "final.json", json.dumps(final, indent=1) + "\n")
    writer.close()
    hosts.from_all(None)  # nobody leaves while another may still fail
    say(f"done: {run.workdir}")


def _settle(
    checkpoints: checkpoint.Checkpoints, writer: writers.Writer, done: int, say: Any
) -> bool:
    """Finish the save under way; say whether all is well with it."""
    problem = checkpoints.settle()
    if problem:
        writer.write("event", done, {"event": "bad_checkpoint", "problem": problem})
        say(problem)
    return problem is None


def _placed(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Join shapes and shardings."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def initialise(
    state: TrainState, config: Config, objective: Objective, shardings: TrainState
) -> tuple[TrainState, list[str]]:
    """Replace parameters by those that `init_from` holds; moments and averages start anew."""
    params = merge(state.params, state.frozen)
    try:
        loaded, lines = init_from.load_all(
            config.init_from,
            params,
            shardings=merge(shardings.params, shardings.frozen),
            objective=objective,
        )
    except ValueError as error:
        raise ConfigError(f"config.{error}") from None
    if not loaded:
        return state, lines
    params, frozen = split(params | loaded, config.optim.freeze)
    extra = jax.jit(objective.start, out_shardings=shardings.extra)(params)
    return dataclasses.replace(state, params=params, frozen=frozen, extra=extra), lines


def _line(log: dict[str, Any], batch_digest: str) -> dict[str, Any]:
    """Fetch one step's numbers from the device."""
    host = jax.device_get(log)
    loss = float(host["training_loss"])
    scalars = {name: float(host[name]) for name in ("lr", "l2_grads", "l2_params")}
    return {
        "training_loss": loss,
        "loss_hex": loss.hex(),
        **values(host["means"]),
        **scalars,
        "skipped": int(host["skipped"]),
        "batch_digest": batch_digest,
    }


@dataclasses.dataclass
class _Looker:
    """Runs evaluators and draws pictures of the current state."""

    config: Config
    objective: Objective
    feed: Feed
    evaluators: Mapping[str, Evaluator]
    mesh: jax.sharding.Mesh
    workdir: Path
    writer: writers.Writer
    clock: Clock
    stop: Stop

    def __post_init__(self) -> None:
        key = rng.key(self.config.seed, "eval")
        self._predict = {
            name: infer.compile_predict(fn, self.mesh, key)
            for name, fn in self.objective.predict_fns().items()
        }

    def _rows(
        self, evaluator: Evaluator, state: TrainState, split: str, limit: int
    ) -> Iterator[infer.Row]:
        load = self.feed.evaluation[split]
        assert isinstance(load.ids, EveryRow)
        ids = dataclasses.replace(load.ids, limit=limit)
        for row in infer.rows(
            self._predict[evaluator.predict],
            state,
            dataclasses.replace(load, ids=ids, rows=sharding.host_rows(self.mesh, ids.batch_size)),
            steps=ids.steps,
            mesh=self.mesh,
            threads=self.config.data.threads,
        ):
            self.clock.alive("evaluation")
            if self.stop.poll():
                raise _Asked
            yield row

    def look(self, state: TrainState, done: int, say: Any) -> None:
        """Evaluate and draw what is due at this step and not there yet, unless asked to stop."""
        if not self.stop.asked:
            with contextlib.suppress(_Asked):
                self._look(state, done, say)

    def _look(self, state: TrainState, done: int, say: Any) -> None:
        last = done == self.config.total_steps
        for name, evaluator in self.evaluators.items():
            folder = self.workdir / "eval" / name / f"step_{done}"
            due = last or done % self.config.eval_every == 0
            last_written = folder / "metrics.json"
            if due and not hosts.from_first(last_written.is_file):
                self._evaluate(name, evaluator, state, done, folder, say)
            path = self.workdir / "pictures" / f"step_{done}" / f"{name}.png"
            due = last or done % self.config.picture_every == 0
            if due and not hosts.from_first(path.is_file):
                rows = list(self._rows(evaluator, state, "val", 8))
                if hosts.is_first():
                    evaluator.draw(rows, path, title=f"{self.config.name}, step {done:,}")
                say(f"picture: {path}")

    def _evaluate(
        self, name: str, evaluator: Evaluator, state: TrainState, done: int, folder: Path, say: Any
    ) -> None:
        splits = {
            split: partial(self._rows, evaluator, state, split, self.config.eval_rows)
            for split in self.feed.evaluation
        }
        metrics, predictions = evaluator.evaluate(splits)
        if self.feed.leaks:
            metrics = {**metrics, "leaks": self.feed.leaks}
        self.writer.write("eval", done, {"evaluator": name, **metrics})
        if hosts.is_first():
            writers.write_atomic(folder / "predictions.csv", predictions)
            writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        say(evaluator.table(metrics))


class _Asked(Exception):
    """A stop was asked for in the middle of an evaluation, which the next start makes up for."""
