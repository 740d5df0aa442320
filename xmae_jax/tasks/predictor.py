"""A loaded run that looks at films for findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from xmae_jax import infer
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.film import Film, FilmError
from xmae_jax.tasks import heat, overlay
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.model import LoadedRun
from xmae_jax.tasks.shown import NARROW, OnDevices, made_as, record_of


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
        self._objective, self._config = loaded.objective, config
        self.method: heat.Method = config.predict.heat or heat.default_method(self._objective)
        try:
            mapped = heat.heat_of(self._objective, self.method)
        except ValueError as error:
            raise ConfigError(f"config.predict.heat: {error}") from None
        self._view = view_of(config, self._objective, train=False)
        self.made_as = made_as(loaded)
        self._devices = OnDevices(loaded, config, most=films)
        self.rows = self._devices.rows
        self._classify = self._devices.compile(self._objective.predict_fns()["classify"])
        self._heat = self._devices.compile(mapped)

    def see(self, answer: Film | FilmError) -> Seen | FilmError:
        """Make a film what the model is shown of it."""
        if isinstance(answer, FilmError):
            return answer
        record, placed = record_of(answer, self.made_as)
        example = self._view(record, np.random.default_rng(0))
        if not example["valid"].any():
            return FilmError(NARROW)
        return Seen(answer, example, placed)

    def tell(self, seen: Sequence[Seen], decisions: Decisions) -> list[Told]:
        """Look at `rows` films at most."""
        if not seen:
            return []
        batch = self._devices.batch([one.example for one in seen])
        logits = self._run(self._classify, batch, "logits")[: len(seen)].astype(np.float64)
        most = self._config.predict.maps
        chosen = [choose(row, decisions.threshold, most=most) for row in logits]
        maps = self._maps(batch, chosen)
        return list(map(Told, logits, (one.placed for one in seen), maps))

    def _run(self, fn: infer.Predict, batch: dict[str, np.ndarray], name: str) -> np.ndarray:
        return np.asarray(self._devices.run(fn, batch)[name])

    def _maps(
        self, batch: dict[str, np.ndarray], chosen: list[list[int]]
    ) -> list[dict[int, Float[np.ndarray, "gh gw"]]]:
        """Map the chosen findings of each film; one program serves any number of them."""
        most, findings = self._config.predict.maps, len(self._objective.findings)
        width = findings if most == "all" else min(most, findings)
        if not width:
            return [{} for _ in chosen]
        places = [np.resize(np.array(row, np.int32), width) for row in chosen]
        found = self._run(self._heat, {**batch, "chosen": self._devices.stack(places)}, "heat")
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
