"""Predict findings of films as they are: DICOM, PNG, JPEG and TIFF files, any of them broken.

Each file is read in a child process, made square and resized as the films of the run were, and
shown to the newest checkpoint. `predictions.csv` has a line for each file, `about.json` what all of
them have in common, `maps/` where the model looked. docs/predict.md has every column.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import expit

from xmae_jax import infer, rng, sharding, writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.film import FLAGS, Film, FilmError, read_film
from xmae_jax.data.manifest import DataError, film_format
from xmae_jax.data.records import FINDINGS, encode_image
from xmae_jax.data.sandbox import Sandbox
from xmae_jax.data.transforms import square_film
from xmae_jax.rundir import read_run
from xmae_jax.tasks import heat, overlay
from xmae_jax.tasks.film import view_of
from xmae_jax.tasks.model import LoadedRun, load_run, placed, refuse_other_changes
from xmae_jax.tasks.train import mesh_of

PREDICTIONS, ABOUT, MAPS = "predictions.csv", "about.json", "maps"
COLUMNS = tuple("number file status reason flags view kind height width".split())
EACH = ("probability", "calibrated", "threshold", "positive")
_AT_ONCE = 16  # films in memory


class NoFilm(Exception):
    """Not one file is a film that can be used; main exits 65."""


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What the run's scores say of its logits; NaN where they say nothing."""

    source: str
    """The file that says it, or empty."""
    threshold: Float[np.ndarray, " c"]
    """Logit from which a finding counts as there."""
    temperature: Float[np.ndarray, " c"]


def run(config: Config, workdir: Path, files: Sequence[str]) -> None:
    """Predict, and raise NoFilm if no file can be used.

    `config` is the run's own, perhaps with another `predict` or `mesh`.
    """
    if not files:
        raise ConfigError("name files: --task=predict --workdir=RUN FILE...")
    loaded = load_run(workdir)
    refuse_other_changes(config, loaded, task="predict")
    if "classify" not in loaded.objective.predict_fns():
        name = loaded.config.objective["name"]
        raise ConfigError(f"--workdir={workdir}: objective {name!r} predicts no findings")
    model = Model(loaded, config, films=len(files))
    decisions = read_decisions(workdir, loaded)
    output = _make_output(config, workdir)
    writer = _Writer(output, loaded.objective, decisions, method=model.method)
    with contextlib.closing(Sandbox()) as sandbox, writer:
        films = sandbox.each(read_film, ((path,) for path in files))
        for first in range(0, len(files), model.rows):
            names = files[first : first + model.rows]
            answers = [next(films) for _ in names]
            writer.write(names, answers, model.predict(answers, decisions))
    about = {
        "run": str(workdir),
        "step": loaded.step,
        "films": {"files": len(files), "usable": writer.usable},
        "made_as": model.made_as,
        "scores": decisions.source or None,
        "heat": model.method,
    }
    writers.write_atomic(output / ABOUT, json.dumps(about, indent=1) + "\n")
    print(f"{writer.usable} of {len(files)} files are films that can be used: {output}")
    if not writer.usable:
        raise NoFilm(f"none of {len(files)} files can be used: {output / PREDICTIONS} says why")


@dataclasses.dataclass(frozen=True)
class Told:
    """What the model says of one film."""

    logits: Float[np.ndarray, " c"]
    placed: overlay.Placed
    maps: dict[int, Float[np.ndarray, "gh gw"]]
    """Of some findings."""


class Model:
    """A loaded run on its devices."""

    def __init__(self, loaded: LoadedRun, config: Config, *, films: int):
        """Place the parameters; `films` is how many there are at most."""
        self._loaded, self._mesh = loaded, mesh_of(config)
        self._objective, self._config = loaded.objective, config
        self.method = config.predict.heat or heat.default_method(self._objective)
        try:
            mapped = heat.heat_of(self._objective, self.method)
        except ValueError as error:
            raise ConfigError(f"config.predict.heat: {error}") from None
        rows = min(config.rows_at_once, films, _AT_ONCE)
        self.rows = rows + -rows % sharding.row_shards(self._mesh)
        self._view = view_of(config, self._objective, train=False)
        self.made_as = _made_as(loaded)
        self._state = placed(loaded, config, self._mesh)
        key = rng.key(config.seed, "eval")
        classify = self._objective.predict_fns()["classify"]
        self._classify = infer.compile_predict(classify, self._mesh, key)
        self._heat = infer.compile_predict(mapped, self._mesh, key)

    def predict(
        self, answers: Sequence[Film | FilmError], decisions: Decisions
    ) -> list[Told | None]:
        """Look at `rows` films at most; None for an error."""
        films = [answer for answer in answers if isinstance(answer, Film)]
        if not films:
            return [None] * len(answers)
        examples, placed = zip(*map(self._example, films), strict=True)
        batch = {name: self._stack([e[name] for e in examples]) for name in examples[0]}
        logits = self._run(self._classify, batch, "logits")[: len(films)].astype(np.float64)
        most = self._config.predict.maps
        chosen = [choose(row, decisions.threshold, most=most) for row in logits]
        maps = self._maps(batch, chosen)
        told = iter(map(Told, logits, placed, maps))
        return [next(told) if isinstance(answer, Film) else None for answer in answers]

    def _example(self, film: Film) -> tuple[dict[str, np.ndarray], overlay.Placed]:
        """Make a film what a record of the run's data would be, stored and read again."""
        made = self.made_as
        square, box = square_film(film.pixels, size=made["size"], fit=made["fit"])
        record = {
            "image": encode_image(square, made["codec"]),
            "valid_box": np.array(box, np.int32),
            "labels": np.full(len(FINDINGS), np.nan, np.float32),
        }
        placed = overlay.Placed(film.pixels.shape, box, made["size"])
        return self._view(record, np.random.default_rng(0)), placed

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
        most = max(map(len, chosen))
        if not most:
            return [{} for _ in chosen]
        width = most if self._config.predict.maps == "all" else int(self._config.predict.maps)
        width = min(width, len(self._objective.findings))
        places = [np.resize(np.array(row, np.int32), width) for row in chosen]
        found = self._run(self._heat, {**batch, "chosen": self._stack(places)}, "heat")
        found = found.reshape(*found.shape[:2], *self._objective.grid)
        return [
            dict(zip(row, maps, strict=False)) for row, maps in zip(chosen, found, strict=False)
        ]


def choose(
    logits: Float[np.ndarray, " c"], thresholds: Float[np.ndarray, " c"], *, most: int | str
) -> list[int]:
    """Choose findings to draw: those that are called, or else the likeliest, `most` at most."""
    order = [int(c) for c in np.argsort(-logits, kind="stable")]
    if most == "all":
        return order
    return ([c for c in order if logits[c] >= thresholds[c]] or order)[: int(most)]


def read_decisions(workdir: Path, loaded: LoadedRun) -> Decisions:
    """Find thresholds and temperatures in the scores of this very checkpoint, if there are any."""
    names = loaded.objective.findings
    nothing = np.full(len(names), np.nan)
    # What --task=evaluate scored sees whole splits, and comes before what training looked at.
    found = sorted(workdir.glob(f"eval/classification*/step_{loaded.step}/metrics.json"))
    if not found:
        print(f"note: step {loaded.step} has no scores, so no finding is called present or absent;"
              f" first --task=evaluate --workdir={workdir}")  # fmt: skip
        return Decisions("", nothing, nothing)
    path = next((p for p in found if p.parents[1].name == "classification_val"), found[-1])
    try:
        entries = json.loads(path.read_text())["findings"]
        threshold = [_number(entries[name]["threshold"], "logit") for name in names]
        temperature = [_number(entries[name]["calibration"], "temperature") for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no scores that can be read ({type(error).__name__})") from None
    without = [name for name, value in zip(names, threshold, strict=True) if np.isnan(value)]
    if without:
        print(f"note: {path} has no threshold for {', '.join(without)}")
    return Decisions(str(path), np.array(threshold), np.array(temperature))


def _number(entry: dict[str, Any] | None, name: str) -> float:
    value = None if entry is None else entry[name]
    return np.nan if value is None else float(value)


def _made_as(loaded: LoadedRun) -> dict[str, Any]:
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


def _make_output(config: Config, workdir: Path) -> Path:
    """Make the folder, for its owner alone: pictures and file names may say who a patient is."""
    if config.predict.output is not None:
        output = Path(config.predict.output).absolute()
        if output.exists():
            raise ConfigError(f"config.predict.output: {output} is there already")
    else:
        taken = [int(p.name) for p in workdir.glob("predict/*") if p.name.isdecimal()]
        output = workdir / "predict" / str(max(taken, default=0) + 1)
    (output / MAPS).mkdir(parents=True)
    output.chmod(0o700)
    return output


class _Writer:
    """Writes the table line by line, and the maps."""

    def __init__(self, output: Path, objective: Any, decisions: Decisions, *, method: heat.Method):
        self._output, self._decisions, self._method = output, decisions, method
        self._findings: tuple[str, ...] = objective.findings
        self._alike = heat.same_for_all(objective, method)
        self._number = self.usable = 0

    def __enter__(self) -> _Writer:
        handle = os.open(self._output / PREDICTIONS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape")
        self._table = csv.writer(self._file, lineterminator="\n")
        each = [f"{kind}:{name}" for name in self._findings for kind in EACH]
        self._table.writerow([*COLUMNS, *each])
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(
        self,
        names: Sequence[str],
        answers: Sequence[Film | FilmError],
        told: Sequence[Told | None],
    ) -> None:
        """Write lines, and the maps of those that are films."""
        for name, answer, one in zip(names, answers, told, strict=True):
            self._number += 1
            if one is None or not isinstance(answer, Film):
                reason = answer.reason if isinstance(answer, FilmError) else ""
                self._table.writerow(
                    [self._number, name, "rejected", reason, *[""] * (len(COLUMNS) - 4)]
                    + [""] * (len(EACH) * len(self._findings))
                )
                print(f"{self._number} {name}: rejected: {reason}")
                continue
            self.usable += 1
            height, width = answer.pixels.shape
            facts = [" ".join(answer.flags), answer.view, answer.kind, height, width]
            self._table.writerow([self._number, name, "ok", "", *facts, *self._cells(one.logits)])
            self._say(name, answer, one.logits)
            for finding, values in one.maps.items():
                self._map(answer, one, finding, values)
        self._file.flush()

    def _cells(self, logits: Float[np.ndarray, " c"]) -> Iterator[str]:
        threshold, temperature = self._decisions.threshold, self._decisions.temperature
        for logit, limit, warmth in zip(logits, threshold, temperature, strict=True):
            yield f"{expit(logit):.6g}"
            yield "" if np.isnan(warmth) else f"{expit(logit / warmth):.6g}"
            yield "" if np.isnan(limit) else f"{expit(limit):.6g}"
            yield _called(logit, limit)

    def _say(self, name: str, film: Film, logits: Float[np.ndarray, " c"]) -> None:
        likeliest = ", ".join(
            f"{self._findings[c]} {expit(logits[c]):.2f}"
            + ("*" if logits[c] >= self._decisions.threshold[c] else "")
            for c in np.argsort(-logits, kind="stable")[:3]
        )
        warned = f" ({', '.join(film.flags)})" if film.flags else ""
        print(f"{self._number} {name}: {likeliest}{warned}")

    def _map(self, film: Film, told: Told, c: int, values: Float[np.ndarray, "gh gw"]) -> None:
        """Draw where the model looked for one finding."""
        name, limit = self._findings[c], self._decisions.threshold[c]
        called = _called(told.logits[c], limit)
        decided = f"threshold {expit(limit):.2f}: {called}" if called else "no threshold"
        shared = ", the same for all findings" if self._alike else ""
        lines = [f"film {self._number}: {name} {expit(told.logits[c]):.2f} ({decided})"]
        lines += [f"{flag}: {FLAGS[flag]}" for flag in film.flags]
        picture = overlay.draw(
            film.pixels,
            values,
            told.placed,
            lines=tuple(lines),
            unit=heat.UNITS[self._method] + shared,
        )
        file = f"{self._number:04d}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}.png"
        (self._output / MAPS / file).write_bytes(picture)


def _called(logit: float, threshold: float) -> str:
    return "" if np.isnan(threshold) else "yes" if logit >= threshold else "no"
