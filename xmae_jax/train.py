"""The training loop, from top to bottom in the order of events.

Shapes come first and arrays later: the state is created, or restored, straight onto its mesh. A
step number in logs, checkpoints and pictures is the number of steps taken.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from xmae_jax import checkpoint, infer, rng, sharding, writers
from xmae_jax import step as step_lib
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow, LoadStep, loader
from xmae_jax.data.plan import Plan
from xmae_jax.metrics import values
from xmae_jax.optim import Optimizer, merge, split
from xmae_jax.typing import Objective, TrainState


class Preempted(Exception):
    """The run was asked to stop, and has saved; main exits 75."""


@runtime_checkable
class Evaluator(Protocol):
    """Turns rows of one of the objective's predictions into numbers and pictures."""

    predict: str

    def evaluate(self, splits: Any) -> tuple[dict[str, Any], str]: ...

    def table(self, metrics: dict[str, Any]) -> str: ...

    def draw(self, rows: Any, path: Path, *, title: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a run reads: the plan with its rows, and the splits that evaluation sees."""

    plan: Plan
    train: LoadStep
    evaluation: dict[str, LoadStep]
    """"train" and "val", each over an `EveryRow`."""


def train(
    config: Config,
    objective: Objective,
    feed: Feed,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh,
    workdir: Path,
    files: dict[str, str],
) -> None:
    """Train to `config.total_steps`, from the newest checkpoint in `workdir` if there is one.

    `files` (name -> JSON) say what the run is made of; they are written once it has a state.
    Raises ConfigError if a checkpoint or `init_from` does not fit, and Preempted after SIGTERM or
    SIGINT, with the state of that very step saved.
    """
    with _Stop() as stop:
        _train(config, objective, feed, evaluators, mesh, workdir, files, stop)


def _train(
    config: Config,
    objective: Objective,
    feed: Feed,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh,
    workdir: Path,
    files: dict[str, str],
    stop: _Stop,
) -> None:
    say = print if jax.process_index() == 0 else lambda *_, **__: None

    # Every shape, and where it lies on the mesh.
    warmup_steps = min(config.warmup_steps, config.total_steps)
    optimizer = Optimizer(config.optim, config.batch_size, warmup_steps, config.total_steps)
    init = partial(step_lib.init_state, objective, optimizer)
    shapes = jax.eval_shape(init, rng.key(config.seed, "init"))
    shardings = sharding.state_shardings(shapes, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves((shapes.params, shapes.frozen)))
    say(f"{config.name}: {count:,} parameters on {mesh.size} {jax.devices()[0].platform} device(s)")
    say(
        f"data: {', '.join(f'{n:,} films' for n in feed.plan.sizes)}; batch {config.batch_size};"
        f" {config.total_steps * config.batch_size / sum(feed.plan.sizes):.1f} epochs"
    )
    say(
        f"peak rate {optimizer.peak_lr:.3g} = blr {config.optim.blr:.3g} x batch"
        f" {config.batch_size} / 256; warm-up {warmup_steps} of {config.total_steps} steps"
        + (f" (clamped from {config.warmup_steps})" * (warmup_steps < config.warmup_steps))
    )

    # The state: restored, or made and perhaps filled from another run.
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.checkpoint_keep)
    first = checkpoints.latest or 0
    if first > config.total_steps:
        raise ConfigError(f"total_steps is {config.total_steps}, and {workdir} is at step {first}")
    try:
        if first:
            state = checkpoints.restore(first, _placed(shapes, shardings))
        else:
            state = jax.jit(init, out_shardings=shardings)(rng.key(config.seed, "init"))
            if config.init_from is not None:
                state = _initialise(state, config, objective, shardings)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, text in files.items():
        writers.write_atomic(workdir / f"{name}.json", text)
    writer = writers.Writer(workdir, active=jax.process_index() == 0)
    if first:
        writer.write("event", first, {"event": "resume"})
        say(f"resumed at step {first}")
    elif config.init_from is not None:
        say(f"parameters from {config.init_from}")

    # The compiled step and predictions.
    step_fn = jax.jit(
        partial(
            step_lib.train_step,
            objective=objective,
            optimizer=optimizer,
            seed=config.seed,
            micro_batches=config.batch_size // config.rows_at_once,
        ),
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    looker = _Looker(config, objective, feed, evaluators, mesh, workdir, writer)

    # The loop.
    batches = loader(
        dataclasses.replace(feed.train, rows=sharding.host_rows(mesh, config.batch_size)),
        first=first,
        last=config.total_steps,
        workers=config.data.workers,
        threads=config.data.threads,
    )
    clock = _Clock(config, first)
    if first and not stop.asked:
        looker.look(state, first, say)  # what a stop may have kept from being done
    for done in range(first + 1, config.total_steps + 1):
        if stop.asked:
            break
        with clock.time("data"):
            host = next(batches)
        state, log = step_fn(state, sharding.to_global(host, mesh, config.batch_size))
        last = done == config.total_steps
        # A save overlaps with the step after it and no further, so that a kill at any moment costs
        # at most one interval.
        with clock.time("ckpt"):
            checkpoints.wait()

        if done % config.log_every == 0 or last or stop.asked:
            line = _line(log, feed.plan.batch_digest(done - 1)) | clock.read(done)
            writer.write("train", done, line)
            say(clock.progress(done, line))

        if done % config.checkpoint_every == 0 or last:
            with clock.time("ckpt"):
                checkpoints.save(done, state)
        if not stop.asked:
            with clock.paused():
                looker.look(state, done, say)

    # The end: what the next run, or a reader, can compare.
    done = int(state.step)
    checkpoints.save(done, state)
    checkpoints.wait()
    if stop.asked:
        writer.write("event", done, {"event": "preempted"})
        raise Preempted(f"stopped at step {done} of {config.total_steps}, and saved")
    final = {"step": done, "sha256": checkpoint.digests(state)}
    writers.write_atomic(workdir / "final.json", json.dumps(final, indent=1) + "\n")
    checkpoints.close()
    writer.close()
    say(f"done: {workdir}")


def _placed(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Join shapes and shardings."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def _initialise(
    state: TrainState, config: Config, objective: Objective, shardings: TrainState
) -> TrainState:
    """Replace the parameters by those of another run; moments and averages start anew."""
    assert config.init_from is not None
    params = checkpoint.load_params(
        config.init_from,
        merge(state.params, state.frozen),
        shardings=merge(shardings.params, shardings.frozen),
    )
    params, frozen = split(params, config.optim.freeze)
    extra = jax.jit(objective.start, out_shardings=shardings.extra)(params)
    return dataclasses.replace(state, params=params, frozen=frozen, extra=extra)


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
        return infer.rows(
            self._predict[evaluator.predict],
            state,
            dataclasses.replace(load, ids=ids, rows=sharding.host_rows(self.mesh, ids.batch_size)),
            steps=ids.steps,
            mesh=self.mesh,
            threads=self.config.data.threads,
        )

    def look(self, state: TrainState, done: int, say: Any) -> None:
        """Evaluate and draw what is due at this step and not there yet."""
        last = done == self.config.total_steps
        for name, evaluator in self.evaluators.items():
            folder = self.workdir / "eval" / name / f"step_{done}"
            if (last or done % self.config.eval_every == 0) and not folder.is_dir():
                self._evaluate(name, evaluator, state, done, folder, say)
            path = self.workdir / "pictures" / f"step_{done}" / f"{name}.png"
            if (last or done % self.config.picture_every == 0) and not path.is_file():
                rows = list(self._rows(evaluator, state, "val", 8))
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
        self.writer.write("eval", done, {"evaluator": name, **metrics})
        writers.write_atomic(folder / "predictions.csv", predictions)
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        say(evaluator.table(metrics))


class _Stop:
    """Remembers SIGTERM and SIGINT, so that the loop can save before it leaves."""

    def __enter__(self) -> _Stop:
        self.asked = False

        def ask(signum: int, frame: Any) -> None:
            self.asked = True

        self._before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Clock:
    """Where the time goes, and how much is left; evaluation and pictures do not count."""

    def __init__(self, config: Config, first: int):
        self._batch, self._total = config.batch_size, config.total_steps
        self._since, self._spent = first, {"data": 0.0, "ckpt": 0.0, "paused": 0.0}
        self._start = time.monotonic()

    def time(self, what: str) -> _Timer:
        """Add the time of a block to `what`."""
        return _Timer(self._spent, what)

    def paused(self) -> _Timer:
        """Leave the time of a block out."""
        return self.time("paused")

    def read(self, done: int) -> dict[str, float]:
        """Return seconds a step since the last reading, and films a second; start anew."""
        now, steps = time.monotonic(), done - self._since
        wall = max(now - self._start - self._spent["paused"], 1e-9)
        out = {
            "img_per_sec": steps * self._batch / wall,
            "t_data": self._spent["data"] / steps,
            "t_step": (wall - self._spent["data"] - self._spent["ckpt"]) / steps,
            "t_ckpt": self._spent["ckpt"] / steps,
        }
        self._start, self._since = now, done
        self._spent.update(data=0.0, ckpt=0.0, paused=0.0)
        return out

    def progress(self, done: int, line: dict[str, Any]) -> str:
        """Write the progress line."""
        seconds = sum(line[name] for name in ("t_data", "t_step", "t_ckpt"))
        left = int(seconds * (self._total - done))
        return (
            f"step {done:>{len(str(self._total))}}/{self._total}"
            f"  loss {line['training_loss']:.5f}  {line['img_per_sec']:.1f} img/s"
            f"  data wait {100 * line['t_data'] / max(seconds, 1e-9):.0f} %"
            f"  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )


class _Timer:
    def __init__(self, spent: dict[str, float], what: str):
        self._spent, self._what = spent, what

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        self._spent[self._what] += time.monotonic() - self._start
