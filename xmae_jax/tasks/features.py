"""The features of a frozen encoder: computed once by the inference loop, or found."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import hosts, infer, init_from, rng, sharding
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.batch import EveryRow, LoadStep
from xmae_jax.data.features import FeatureSource, alone, place_of_features, write_features
from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.index import read_entries
from xmae_jax.data.records import Records
from xmae_jax.data.views import LabelledView
from xmae_jax.digest import leaf_digests
from xmae_jax.heads.linear import LinearConfig
from xmae_jax.objectives.probe import Reads, encode
from xmae_jax.objectives.supervised import Supervised
from xmae_jax.optim import merge
from xmae_jax.program import lay_out
from xmae_jax.seal import json_digest
from xmae_jax.typing import Params, TrainState


def what_to_read(config: Config, objective: Supervised, *, films: int, say: Any) -> Reads:
    """Choose what a probe reads, and say why: pooled features, stored patches, or films."""
    if isinstance(objective.head, LinearConfig) and objective.head.pool != "mean_max":
        return "pooled"
    n, layers = objective.grid[0] * objective.grid[1], objective.head.layers
    gigabytes = films * layers * n * objective.encoder.width * 2 / 1e9
    told = (
        f"patches of {films:,} films, {n} of each in {layers} block(s), take {gigabytes:,.3g} GB"
        f" in float16; cache.max_gb is {config.cache.max_gb:g}"
    )
    if gigabytes <= config.cache.max_gb:
        say(f"{told}: they are stored")
        return "patches"
    say(f"{told}: they are not stored, and the encoder runs at every step")
    return "films"


def encoder_params(
    config: Config, objective: Supervised, mesh: jax.sharding.Mesh, say: Any
) -> Params:
    """Make the parameters, the encoder's those of `init_from`."""
    shardings = lay_out(config, objective, mesh).shardings
    where = merge(shardings.params, shardings.frozen)
    with jax.set_mesh(mesh):
        params = jax.jit(objective.init, out_shardings=where)(rng.key(config.seed, "init"))
        if config.init_from is None:
            say("WARNING: init_from is None, so the encoder is random: what is measured is how far"
                " one gets without any pre-training")  # fmt: skip
            return params
        try:
            loaded, lines = init_from.load(
                config.init_from,
                {"encoder": params["encoder"]},
                shardings={"encoder": where["encoder"]},
                objective=objective,
            )
        except ValueError as error:
            raise ConfigError(f"config.init_from: {error}") from None
        say("\n".join(lines))
        return {**params, **loaded}


def encoder_digest(params: Params) -> str:
    """Name the parameters of an encoder."""
    return json_digest(leaf_digests(params["encoder"]))


@dataclasses.dataclass(frozen=True)
class Cache:
    """Makes features of records, or finds those that were made before."""

    config: Config
    objective: Supervised
    params: Params
    """Of encoder and head; the head's are of no use here."""
    mesh: jax.sharding.Mesh
    folder: Path
    say: Any

    def sources(self, records: Sequence[Records], *, patches: bool) -> list[FeatureSource]:
        """Return the features of each source of a split."""
        return [self._source(of, patches=patches) for of in records]

    def _key(self, records: Records, *, patches: bool) -> dict[str, Any]:
        """Say all that features depend on."""
        o = self.objective
        return {
            "encoder": encoder_digest(self.params),
            "settings": dataclasses.asdict(o.encoder),
            "image_size": o.image_size,
            "compute_dtype": o.compute_dtype,
            "layers": o.head.layers,
            "patches": patches,
            "view": o.view,
            "records": records.digest,
            "split": records.split,
        }

    def _source(self, records: Records, *, patches: bool) -> FeatureSource:
        key = self._key(records, patches=patches)
        place = place_of_features(self.folder, key)
        with alone(place) if hosts.is_first() else contextlib.nullcontext():
            if hosts.from_first(place.is_dir):
                self.say(f"features of {len(records):,} films ({records.split}): found in {place}")
                return FeatureSource(place, key)
            began = time.monotonic()
            rows = self._rows(records, patches=patches)
            if hosts.is_first():
                write_features(place, key, rows, count=len(records))
            else:
                for _ in rows:
                    pass
        hosts.from_all(None)
        speed = len(records) / (time.monotonic() - began)
        self.say(f"features of {len(records):,} films ({records.split}): {speed:,.1f} a second")
        return FeatureSource(place, key)

    def _rows(
        self, records: Records, *, patches: bool
    ) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
        """Run the encoder over every record once, in order."""
        config, o = self.config, self.objective
        ids = EveryRow((len(records),), config.rows_at_once, len(records))
        load = LoadStep(
            ids,
            [records],
            LabelledView(o.image_size, o.grid, tuple(FINDINGS), None, None),
            config.seed,
            sharding.host_rows(self.mesh, ids.batch_size),
            skip=config.data.bad_records == "skip",
        )
        entries = [e for e in read_entries(records.directory) if e.split == records.split]

        def fn(params: Any, frozen: Any, extra: Any, batch: Any, key: Any) -> Any:
            return encode(o, params, batch, patches=patches)

        key = rng.key(config.seed, "eval")
        predict = infer.compile_predict(fn, self.mesh, key, leave_out=("image",))
        state = TrainState(0, self.params, {}, {}, {}, {})
        threads = config.data.threads
        run = partial(infer.rows, steps=ids.steps, mesh=self.mesh, threads=threads)
        names = ("pooled", "labels", *(("patches", "valid") if patches else ()))
        for row in run(predict, state, load):
            index = int(row["id"][1])
            yield index, entries[index].id, {name: row[name] for name in names}
