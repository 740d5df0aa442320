"""Phases of a protocol: ordinary runs in directories of their own, on rows of any sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import checkpoint, hosts, infer, rng, sharding, train
from xmae_jax.config import Config, ConfigError, to_json
from xmae_jax.data.batch import EveryRow, LoadStep, Source
from xmae_jax.data.plan import Plan, mixture_counts
from xmae_jax.data.subset import Rows, rows_digest
from xmae_jax.digest import nested
from xmae_jax.objectives.probe import Probe, Reads
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.rundir import Run, new_id, read_run, run_of
from xmae_jax.typing import Params, TrainState


@dataclasses.dataclass(frozen=True)
class Data:
    """What a phase reads: sources, and the rows of an epoch of each; None is every record once."""

    sources: Sequence[Source]
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
        """Set the order of data, sources in proportion to their rows; ConfigError if too many."""
        sizes = tuple(map(len, self.rows))
        if (some := sum(map(bool, sizes))) > config.batch_size:
            raise ConfigError(
                f"config.batch_size: {config.batch_size} is less than a row for each of the {some}"
                " shard directories and splits that are trained on together"
            )
        counts = mixture_counts(sizes, config.batch_size)
        return Plan(config.seed, sizes, counts, self.digests, (), self.chosen)

    def every(self, batch_size: int) -> EveryRow:
        """List the films of all rows, each once."""
        rows = tuple(map(np.unique, self.rows))
        sizes = tuple(map(len, rows))
        return EveryRow(sizes, batch_size, sum(sizes), rows)

    def with_rows_of(self, other: Data) -> Data:
        """Join the rows of two splits."""
        every = self.chosen is None and other.chosen is None
        return Data([*self.sources, *other.sources], None if every else self.rows + other.rows)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all phases share."""

    config: Config
    objective: Supervised
    mesh: jax.sharding.Mesh
    run: Run
    permit: train.Permit
    leaks: dict[str, int]
    reads: Reads
    encoder: str | None
    """Digest of the encoder, where phases run it; features are named by theirs."""
    view: Any
    say: Callable[..., None]

    def load(self, ids: Any, sources: Sequence[Source], view: Any) -> LoadStep:
        """Read rows of sources."""
        skip = self.config.data.bad_records == "skip"
        return LoadStep(ids, sources, view, self.config.seed, slice(None), skip=skip)

    def phase(self, name: str, data: Data, *, members: int | None, **optim: Any) -> Params:
        """Train heads by the one loop, in a directory of its own; return the state, on the host.

        optim: what is to be other than in the run's own config.
        """
        given = self.config
        # A batch of patches may take 2 GB, and two are read ahead for each thread.
        threads = min(given.data.threads, 4) if self.reads == "patches" else given.data.threads
        config = dataclasses.replace(
            given,
            name=f"{given.name}_{name}",
            data=dataclasses.replace(given.data, threads=threads),
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
        record = _record(workdir, config, plan, encoder=self.encoder)
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

    def predict(self, fn: Any, state: TrainState, data: Data, view: Any) -> Iterator[infer.Row]:
        """Yield the prediction for every film once."""
        rows, key = self.config.rows_at_once, rng.key(self.config.seed, "eval")
        ids = data.every(rows)
        own = sharding.host_rows(self.mesh, rows)
        large = ("image", "pooled", "patches", "valid")
        with jax.set_mesh(self.mesh):
            yield from infer.rows(
                infer.compile_predict(fn, self.mesh, key, leave_out=large),
                state,
                dataclasses.replace(self.load(ids, data.sources, view), rows=own),
                steps=ids.steps,
                mesh=self.mesh,
                threads=self.config.data.threads,
            )


def _record(workdir: Path, config: Config, plan: Plan, *, encoder: str | None) -> Run:
    """Open the record of a phase; ConfigError if it was begun with something else."""
    pairs = zip(plan.sizes, plan.digests, strict=True)
    more = {} if encoder is None else {"encoder": encoder}
    listed = [{"records": size, "digest": digest} | more for size, digest in pairs]

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
