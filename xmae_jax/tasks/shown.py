"""What a loaded run is shown of films: made as those of its data, in batches on its devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xmae_jax import infer, rng, sharding
from xmae_jax.config import Config
from xmae_jax.data.film import Film
from xmae_jax.data.manifest import DataError, film_format
from xmae_jax.data.records import FINDINGS, encode_image
from xmae_jax.data.transforms import square_film
from xmae_jax.rundir import read_run
from xmae_jax.tasks import overlay
from xmae_jax.tasks.model import LoadedRun, placed
from xmae_jax.tasks.train import mesh_of

_AT_ONCE = 16  # rows in memory
NARROW = "too narrow: not one patch of the model's is filled by film"
"""Why a film is rejected of which the model would see nothing."""


class OnDevices:
    """A loaded run on its devices, for batches of `rows` examples."""

    def __init__(self, loaded: LoadedRun, config: Config, *, most: int):
        """Place the parameters; `most` is how many examples there are."""
        self._mesh = mesh_of(config)
        rows = min(config.rows_at_once, most, _AT_ONCE)
        self.rows = rows + -rows % sharding.row_shards(self._mesh)
        self._state = placed(loaded, config, self._mesh)
        self._key = rng.key(config.seed, "eval")

    def compile(self, fn: Callable[..., Any]) -> infer.Predict:
        """Compile a prediction, which `run` then calls."""
        return infer.compile_predict(fn, self._mesh, self._key)

    def stack(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Fill a batch up with copies of its last row."""
        return np.stack([*parts, *[parts[-1]] * (self.rows - len(parts))])

    def batch(self, examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Make a batch of one to `rows` examples."""
        return {name: self.stack([one[name] for one in examples]) for name in examples[0]}

    def run(self, fn: infer.Predict, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Predict a batch."""
        with jax.set_mesh(self._mesh):
            return fn(self._state, sharding.to_global(batch, self._mesh, self.rows))


def record_of(film: Film, made: dict[str, Any]) -> tuple[dict[str, Any], overlay.Placed]:
    """Make a film what a record of the run's data would be, stored and to be read again."""
    square, box = square_film(film.pixels, size=made["size"], fit=made["fit"])
    record = {
        "image": encode_image(square, made["codec"]),
        "valid_box": np.array(box, np.int32),
        "view": film.view,
        "labels": np.full(len(FINDINGS), np.nan, np.float32),
    }
    return record, overlay.Placed(film.pixels.shape, box, made["size"])


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
