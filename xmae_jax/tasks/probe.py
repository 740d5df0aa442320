"""A frozen probe: a grid of heads on features computed once, the best one of them trained again.

1. Features of every film of the training and the validation split, kept in a cache.
2. A grid of rates and decays on the training split, all at once: `grid/`, an ordinary run.
3. The member of the best mean score on the validation split wins: `probe.json`.
4. Its rate and decay on both splits, from the start and for as many steps: `refit/`, likewise.
   A start from the winner's parameters, as CheXFound's code has it, would give a chosen rate more
   steps than it was chosen for.
5. Encoder and head become the checkpoint of the run directory, an ordinary one of `supervised`.
6. The test split is read for the first time, and scored.

Interrupted and started again it goes on with the first of these that is not done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from xmae_jax import checkpoint, hosts, infer, init_from, rng, sharding, train, writers
from xmae_jax.config import Config, ConfigError, to_json
from xmae_jax.data.batch import EveryRow, LoadStep
from xmae_jax.data.features import FeatureView, standardisation
from xmae_jax.data.index import read_index
from xmae_jax.data.plan import Plan, mixture_counts
from xmae_jax.data.records import Records
from xmae_jax.data.subset import Rows, rows_digest
from xmae_jax.digest import nested, sha256
from xmae_jax.evaluators.classification import Classification
from xmae_jax.objectives.probe import Probe, Reads, fold
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import merge, split
from xmae_jax.program import lay_out
from xmae_jax.rundir import Run, new_id, read_run, run_of
from xmae_jax.scores.ranking import point, rank
from xmae_jax.tasks.features import Cache, what_to_read
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.split import Split
from xmae_jax.typing import Params, TrainState


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a phase reads: sources, and the rows of an epoch of each; None is every record once."""

    sources: Sequence[Any]
    chosen: Rows | None

    @property
    def rows(self) -> Rows:
        """Rows of an epoch of each source."""
        return self.chosen or tuple(np.arange(len(of)) for of in self.sources)

    @property
    def digests(self) -> tuple[str, ...]:
        """Names the rows of an epoch of each source."""
        names = tuple(of.digest for of in self.sources)
        if self.chosen is None:
            return names
        return tuple(rows_digest(d, rows) for d, rows in zip(names, self.chosen, strict=True))

    def plan(self, config: Config) -> Plan:
        """Set the order of data, sources in proportion to their rows."""
        sizes = tuple(map(len, self.rows))
        counts = mixture_counts(sizes, config.batch_size)
        return Plan(config.seed, sizes, counts, self.digests, (), self.chosen)

    def every(self, batch_size: int) -> EveryRow:
        """List the films of all rows, each once."""
        rows = tuple(map(np.unique, self.rows))
        sizes = tuple(map(len, rows))
        return EveryRow(sizes, batch_size, sum(sizes), rows)

    def with_rows_of(self, other: _Data) -> _Data:
        """Join the rows of two splits."""
        every = self.chosen is None and other.chosen is None
        return _Data([*self.sources, *other.sources], None if every else self.rows + other.rows)


@dataclasses.dataclass(frozen=True)
class Member:
    """What became of one pair of rate and decay."""

    blr: float
    weight_decay: float
    alive: bool
    """Whether loss and gradient were finite to the end."""
    auroc: float | None
    """Mean over findings on the validation split; None where undefined, or not alive."""
    average_precision: float | None


@dataclasses.dataclass(frozen=True)
class _Protocol:
    """What all phases share."""

    config: Config
    objective: Supervised
    mesh: jax.sharding.Mesh
    run: Run
    permit: train.Permit
    leaks: dict[str, int]
    reads: Reads
    view: Any
    say: Callable[..., None]

    def load(self, ids: Any, sources: Sequence[Any], view: Any) -> LoadStep:
        """Read rows of sources."""
        skip = self.config.data.bad_records == "skip"
        return LoadStep(ids, sources, view, self.config.seed, slice(None), skip=skip)

    def phase(self, name: str, data: _Data, *, members: int | None, **optim: Any) -> Params:
        """Train heads by the one loop, in a directory of its own; return the state, on the host.

        optim: what is to be other than in the run's own config.
        """
        given = self.config
        config = dataclasses.replace(
            given,
            name=f"{given.name}_{name}",
            optim=dataclasses.replace(given.optim, **optim),
            guard=given.guard
            if members is None
            else dataclasses.replace(given.guard, spike_sigma=None),
            init_from=given.init_from if self.reads == "films" else None,
            probe=None,
            objective={**given.objective, "name": "probe", "reads": self.reads},
        )
        workdir = self.run.workdir / name
        plan = data.plan(config)
        record = _record(workdir, config, plan)
        if not hosts.from_first((workdir / "final.json").is_file):
            train.train(
                config,
                Probe(self.objective, self.reads, members),
                feed=train.Feed(plan, self.load(plan.ids, data.sources, self.view), {}, self.leaks),
                evaluators={},
                mesh=self.mesh,
                run=record,
                permit=self.permit,
                mfu_of_speed=None,
            )
        newest = checkpoint.step_directories(workdir)[0]
        try:
            leaves = checkpoint.read_digest(newest, record.id)["leaves"]
            return nested(checkpoint.read_back(newest, leaves))
        except checkpoint.Unusable as error:
            raise checkpoint.CheckpointError(f"{newest}: {error}") from None

    def predict(self, fn: Any, state: TrainState, data: _Data, view: Any) -> Iterator[infer.Row]:
        """Yield the prediction for every film once."""
        rows = self.config.rows_at_once
        ids = data.every(rows)
        own = sharding.host_rows(self.mesh, rows)
        with jax.set_mesh(self.mesh):
            yield from infer.rows(
                infer.compile_predict(fn, self.mesh, rng.key(self.config.seed, "eval")),
                state,
                dataclasses.replace(self.load(ids, data.sources, view), rows=own),
                steps=ids.steps,
                mesh=self.mesh,
                threads=self.config.data.threads,
            )


def with_encoder(config: Config) -> Config:
    """Take the encoder's settings from the run that `init_from` names, if it is a run."""
    if config.init_from is None or not checkpoint.step_directories(config.init_from):
        return config
    saved = Path(config.init_from) / "config.json"
    try:
        encoder = json.loads(saved.read_text())["objective"].get("encoder")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"config.init_from: {saved}: {error}") from None
    if encoder is None:
        raise ConfigError(f"config.init_from: the objective of {config.init_from} has no encoder")
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
    _begin(config, run)
    params = _encoder(config, objective, mesh, say)
    films = sum(map(len, (*training.records, *held_out.records)))
    reads = what_to_read(config, objective, films=films, say=say)
    sources: list[Sequence[Any]] = [training.records, held_out.records]
    moments, view = None, view_of(config, objective, train=False)
    if reads != "films":
        folder = Path(config.cache.dir) if config.cache.dir else run.workdir / "cache"
        cache = Cache(config, objective, params, mesh, folder, say)
        with jax.set_mesh(mesh):
            sources = [cache.sources(of, patches=reads == "patches") for of in sources]
    train_data, val_data = _Data(sources[0], training.chosen), _Data(sources[1], held_out.chosen)
    if reads != "films":
        if reads == "pooled":
            moments = standardisation(sources[0], train_data.rows)
        view = FeatureView(objective.findings, *(moments or (None, None)))
    protocol = _Protocol(config, objective, mesh, run, permit, leaks, reads, view, say)
    winner, val = _choose(protocol, train_data, val_data)
    state = protocol.phase(
        "refit",
        train_data.with_rows_of(val_data),
        members=None,
        blr=winner.blr,
        weight_decay=winner.weight_decay,
        weight_decay_end=winner.weight_decay,
    )
    head = merge(state["params"], state.get("frozen", {}))["head"]
    if moments is not None:
        head = fold(objective, head, *moments)
    final = _assemble(protocol, {"encoder": params["encoder"], "head": head})
    _test(protocol, final, held_out, val)
    told = {"step": config.total_steps, "sha256": sha256(final)}
    if hosts.is_first():
        writers.write_atomic(run.workdir / "final.json", json.dumps(told, indent=1) + "\n")
    say(f"done: {run.workdir}")


def _begin(config: Config, run: Run) -> None:
    """Put on record what the run directory holds."""
    digest = run.digest(to_json(config))
    if hosts.is_first():
        if digest not in run.configs:
            dataclasses.replace(run, configs=(*run.configs, digest)).write()
        writers.write_atomic(run.workdir / "config.json", to_json(config))


def _record(workdir: Path, config: Config, plan: Plan) -> Run:
    """Open the record of a phase; ConfigError if it was begun with something else."""
    pairs = zip(plan.sizes, plan.digests, strict=True)
    listed = [{"records": size, "digest": digest} for size, digest in pairs]

    def known() -> dict[str, Any]:
        record = read_run(workdir) or Run(workdir, new_id(), listed)
        begun = record.configs and record.digest(to_json(config)) not in record.configs
        if begun or record.sources != listed:
            raise ConfigError(
                f"{workdir} was begun with another config, encoder or data; a probe does not go on"
                " under a changed config: choose another --workdir"
            )
        workdir.mkdir(exist_ok=True)
        return record.tree()

    return run_of(workdir, hosts.from_first(known))


def _encoder(config: Config, objective: Supervised, mesh: jax.sharding.Mesh, say: Any) -> Params:
    """Make the parameters, with the encoder of `init_from`."""
    program = lay_out(config, objective, mesh)
    if "encoder" in program.shapes.params:
        raise ConfigError(f"config.optim.freeze {config.optim.freeze} leaves the encoder free, and"
                          " a probe's is frozen: add 'encoder/.*'")  # fmt: skip
    with jax.set_mesh(mesh):
        make = jax.jit(program.init, out_shardings=program.shardings)
        state = make(rng.key(config.seed, "init"))
        params = merge(state.params, state.frozen)
        if config.init_from is None:
            say("WARNING: init_from is None, so the encoder is random: what is measured is how far"
                " a head gets without any pre-training")  # fmt: skip
            return params
        try:
            loaded, lines = init_from.load(
                config.init_from,
                {"encoder": params["encoder"]},
                shardings={"encoder": program.shardings.frozen["encoder"]},
                objective=objective,
            )
        except ValueError as error:
            raise ConfigError(f"config.init_from: {error}") from None
        say("\n".join(lines))
        return {**params, **loaded}


def _choose(
    protocol: _Protocol, train_data: _Data, val_data: _Data
) -> tuple[Member, list[infer.Row]]:
    """Train the grid, score it on the validation split; return who wins, and its rows there."""
    config = protocol.config
    assert config.probe is not None
    grid, metric = config.probe.grid, config.probe.metric
    protocol.say(f"grid: {len(grid.blr)} rates x {len(grid.weight_decay)} decays at once")
    members = len(grid.members)
    state = protocol.phase("grid", train_data, members=members, grid=grid, blr=max(grid.blr))
    rows = [
        {name: row[name] for name in ("logits", "labels", "id")}
        for row in protocol.predict(
            Probe(protocol.objective, protocol.reads, members).members_logits,
            TrainState(0, state["params"], state.get("frozen", {}), {}, {}, {}),
            val_data,
            protocol.view,
        )
    ]
    logits, labels = (
        np.stack([row[n] for row in rows]).astype(float) for n in ("logits", "labels")
    )
    table = []
    for i, (blr, decay) in enumerate(grid.members):
        alive = bool(state["guard"]["alive"][i]) and bool(np.isfinite(logits[:, i]).all())
        scores = macro(logits[:, i], labels) if alive else (None, None)
        table.append(Member(blr, decay, alive, *scores))
    scored = [i for i, member in enumerate(table) if getattr(member, metric) is not None]
    if not scored:
        raise ConfigError(
            f"no member of the grid has a score on {config.data.eval_split}: no finding there is"
            " known both present and absent, or no member stayed finite"
        )
    best = max(scored, key=lambda i: getattr(table[i], metric))
    protocol.say(_table(table, table[best], config))
    if hosts.is_first():
        told = {
            "metric": metric,
            "split": config.data.eval_split,
            "winner": best,
            "members": [dataclasses.asdict(member) for member in table],
        }
        path = protocol.run.workdir / "probe.json"
        writers.write_atomic(path, json.dumps(told, indent=1) + "\n")
    return table[best], [{**row, "logits": row["logits"][best]} for row in rows]


def macro(
    logits: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"]
) -> tuple[float | None, float | None]:
    """Return mean AUROC and average precision over findings that have both sides."""
    found = []
    for scores, truth in zip(logits.T, labels.T, strict=True):
        known = np.isin(truth, (0.0, 1.0))
        auroc, average = point(rank(scores[known], truth[known] == 1))
        if auroc is not None:
            found.append((auroc, average))
    if not found:
        return None, None
    means = np.mean(found, axis=0)
    return float(means[0]), float(means[1])


def _table(table: list[Member], winner: Member, config: Config) -> str:
    """Write the members for a terminal."""
    split, batch = config.data.eval_split, config.batch_size

    def told(score: float | None) -> str:
        return "-" if score is None else f"{score:.4f}"

    lines = [f"  {'rate':>9} {'decay':>8}  {'AUROC':>7} {'AP':>7}  ({split}, mean of findings)"]
    for member in table:
        fate = "" if member.alive else "not finite, left out"
        lines.append(
            f"  {member.blr * batch / 256:>9.3g} {member.weight_decay:>8.3g}"
            f"  {told(member.auroc):>7} {told(member.average_precision):>7}"
            f"  {'chosen' if member is winner else fate}"
        )
    return "\n".join(lines)


def _assemble(protocol: _Protocol, params: Params) -> TrainState:
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


def _test(protocol: _Protocol, state: TrainState, held_out: Split, val: list[infer.Row]) -> None:
    """Score the test split of the data, if there is one.

    Thresholds are chosen on what the grid's winner said of the validation split, which it had not
    seen; the model that is tested was trained on it.
    """
    config, objective, name = protocol.config, protocol.objective, "test"
    there = [Records(path, name) for path in config.data.paths if name in read_index(path)]
    if not there:
        protocol.say(f"there is no split {name!r}: nothing is tested")
        return
    tested = Split(there, name, held_out.subset)
    view = view_of(config, objective, train=False)
    data = _Data(tested.records, tested.chosen)
    evaluator = Classification(
        findings=objective.findings,
        entries={"val": held_out.entries, name: tested.entries},
        train_positive=np.array(objective.stats().positive),
    )
    rows = protocol.predict(objective.classify, state, data, view)
    metrics, predictions = evaluator.evaluate({"val": val.__iter__, name: lambda: rows})
    if protocol.leaks:
        metrics = {**metrics, "leaks": protocol.leaks}
    folder = protocol.run.workdir / "eval" / "classification_test" / f"step_{config.total_steps}"
    if hosts.is_first():
        writers.write_atomic(folder / "predictions.csv", predictions)
        writers.write_atomic(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    protocol.say(evaluator.table(metrics))
