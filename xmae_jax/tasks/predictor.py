"""A loaded run that looks at films: each made square and resized as the run's own films were."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from xmae_jax import infer, rng, sharding
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.film import Film, FilmError
from xmae_jax.data.manifest import DataError, film_format
from xmae_jax.data.records import FINDINGS, encode_image
from xmae_jax.data.transforms import square_film
from xmae_jax.rundir import read_run
from xmae_jax.tasks import heat, overlay
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.model import LoadedRun, placed
from xmae_jax.tasks.train import mesh_of

_AT_ONCE = 16  # films in memory


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What the run's scores say of its logits; NaN where they say nothing."""

    source: str
    """The file that says it, or empty."""
    threshold: Float[np.ndarray, " c"]
    """Logit from which a finding counts as there."""
    temperature: Float[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A film and what the model is shown of it."""

    film: Film
    example: dict[str, np.ndarray]
    placed: overlay.Placed


@dataclasses.dataclass(frozen=True)
class Told:
    """What the model says of one film."""

    logits: Float[np.ndarray, " c"]
    placed: overlay.Placed
    maps: dict[int, Float[np.ndarray, "gh gw"]]
    """Of some findings."""


class Predictor:
    """A loaded run on its devices."""

    def __init__(self, loaded: LoadedRun, config: Config, *, films: int):
        """Place the parameters; `films` is how many there are at most."""
        self._mesh = mesh_of(config)
        self._objective, self._config = loaded.objective, config
        self.method: heat.Method = config.predict.heat or heat.default_method(self._objective)
        try:
            mapped = heat.heat_of(self._objective, self.method)
        except ValueError as error:
            raise ConfigError(f"config.predict.heat: {error}") from None
        rows = min(config.rows_at_once, films, _AT_ONCE)
        self.rows = rows + -rows % sharding.row_shards(self._mesh)
        self._view = view_of(config, self._objective, train=False)
        self.made_as = made_as(loaded)
        self._state = placed(loaded, config, self._mesh)
        key = rng.key(config.seed, "eval")
        classify = self._objective.predict_fns()["classify"]
        self._classify = infer.compile_predict(classify, self._mesh, key)
        self._heat = infer.compile_predict(mapped, self._mesh, key)

    def see(self, answer: Film | FilmError) -> Seen | FilmError:
        """Make a film what a record of the run's data would be, stored and read again."""
        if isinstance(answer, FilmError):
            return answer
        made = self.made_as
        square, box = square_film(answer.pixels, size=made["size"], fit=made["fit"])
        record = {
            "image": encode_image(square, made["codec"]),
            "valid_box": np.array(box, np.int32),
            "labels": np.full(len(FINDINGS), np.nan, np.float32),
        }
        example = self._view(record, np.random.default_rng(0))
        if not example["valid"].any():
            return FilmError("too narrow: not one patch of the model's is filled by film")
        return Seen(answer, example, overlay.Placed(answer.pixels.shape, box, made["size"]))

    def tell(self, seen: Sequence[Seen], decisions: Decisions) -> list[Told]:
        """Look at `rows` films at most."""
        if not seen:
            return []
        batch = {n: self._stack([one.example[n] for one in seen]) for n in seen[0].example}
        logits = self._run(self._classify, batch, "logits")[: len(seen)].astype(np.float64)
        most = self._config.predict.maps
        chosen = [choose(row, decisions.threshold, most=most) for row in logits]
        maps = self._maps(batch, chosen)
        return list(map(Told, logits, (one.placed for one in seen), maps))

    def _stack(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Fill a batch up with copies of its last row."""
        return np.stack([*parts, *[parts[-1]] * (self.rows - len(parts))])

    def _run(self, fn: infer.Predict, batch: dict[str, np.ndarray], name: str) -> np.ndarray:
        with jax.set_mesh(self._mesh):
            whole = fn(self._state, sharding.to_global(batch, self._mesh, self.rows))
        return np.asarray(whole[name])

    def _maps(
        self, batch: dict[str, np.ndarray], chosen: list[list[int]]
    ) -> list[dict[int, Float[np.ndarray, "gh gw"]]]:
        """Map the chosen findings of each film; one program serves any number of them."""
        most, findings = self._config.predict.maps, len(self._objective.findings)
        width = findings if most == "all" else min(most, findings)
        if not width:
            return [{} for _ in chosen]
        places = [np.resize(np.array(row, np.int32), width) for row in chosen]
        found = self._run(self._heat, {**batch, "chosen": self._stack(places)}, "heat")
        found = found.reshape(*found.shape[:2], *self._objective.grid)
        each = zip(chosen, found, strict=False)  # both are filled up
        return [dict(zip(row, maps, strict=False)) for row, maps in each]


def choose(
    logits: Float[np.ndarray, " c"], thresholds: Float[np.ndarray, " c"], *, most: int | str
) -> list[int]:
    """Choose findings to draw: those that are called, or else the likeliest, `most` at most."""
    order = [int(c) for c in np.argsort(-logits, kind="stable")]
    if most == "all":
        return order
    return ([c for c in order if logits[c] >= thresholds[c]] or order)[: int(most)]


def made_as(loaded: LoadedRun) -> dict[str, Any]:
    """Say how films became squares in the run's data: `size`, `fit` and `codec`."""
    record = read_run(loaded.workdir)
    made = [source["film"] for source in record.sources if "film" in source] if record else []
    if not made:  # of a run that does not tell
        with contextlib.suppress(DataError):
            made = [film_format(path) for path in loaded.config.data.paths]
    usual = {"size": loaded.config.image_size, "fit": "pad", "codec": "jpeg"}
    first = {**usual, **(made[0] if made else {})}
    if not made or any({**usual, **other} != first for other in made):
        reason = "the run's data sets differ in it" if made else "the run does not say how"
        print(f"note: films are made {first['size']} px squares by {first['fit']!r}: {reason}")
    return first
