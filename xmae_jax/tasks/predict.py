"""Predict from films as they are: DICOM, PNG, JPEG and TIFF files, any of them broken.

Each file is read in a child process, made square and resized as the films of the run were, and
shown to the newest checkpoint. What comes out goes by what the run predicts: findings of each file,
which are here, or reports of studies, which are in `tasks/predict_reports.py`. docs/predict.md has
every column.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from xmae_jax import writers
from xmae_jax.config import Config, ConfigError
from xmae_jax.data.film import FLAGS, Film, FilmError, read_film
from xmae_jax.data.manifest import DataError
from xmae_jax.data.sandbox import Sandbox
from xmae_jax.tasks import heat, overlay, predict_reports
from xmae_jax.tasks.model import LoadedRun, load_run, refuse_other_changes
from xmae_jax.tasks.outputs import ABOUT, PREDICTIONS, NoFilm, Table, make_output, shown
from xmae_jax.tasks.predictor import Decisions, Predictor, Seen, Told
from xmae_jax.tasks.probe import refitted

MAPS = "maps"
COLUMNS = tuple("number file status reason flags view kind height width".split())
EACH = ("probability", "calibrated", "threshold", "positive")


def run(config: Config, workdir: Path, files: Sequence[str]) -> None:
    """Predict, and raise NoFilm if no file can be used.

    `config` is the run's own, perhaps with another `predict` or `mesh`.
    """
    if not files:
        raise ConfigError("name files: --task=predict --workdir=RUN FILE...")
    loaded = load_run(workdir)
    refuse_other_changes(config, loaded, task="predict")
    known = loaded.objective.predict_fns()
    tell = next((task for name, task in _TASKS.items() if name in known), None)
    if tell is None:
        name = loaded.config.objective["name"]
        raise ConfigError(
            f"--workdir={workdir}: objective {name!r} predicts no findings, and writes no reports"
        )
    tell(config, loaded, files)


def _classify(config: Config, loaded: LoadedRun, files: Sequence[str]) -> None:
    """Tell the findings of each file."""
    model = Predictor(loaded, config, films=len(files))
    decisions = read_decisions(loaded.workdir, loaded)
    output = make_output(config, loaded.workdir, folders=[MAPS])
    writer = _Writer(output, loaded.objective, decisions, method=model.method)
    with contextlib.closing(Sandbox()) as sandbox, contextlib.closing(writer):
        films = sandbox.each(read_film, ((path,) for path in files))
        for first in range(0, len(files), model.rows):
            names = files[first : first + model.rows]
            seen = [model.see(next(films)) for _ in names]
            told = iter(model.tell([one for one in seen if isinstance(one, Seen)], decisions))
            for name, one in zip(names, seen, strict=True):
                if isinstance(one, FilmError):
                    writer.reject(name, one.reason)
                else:
                    writer.write(name, one.film, next(told))
    about = {
        "run": str(loaded.workdir),
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


_TASKS: dict[str, Callable[[Config, LoadedRun, Sequence[str]], None]] = {
    "classify": _classify,
    "write": predict_reports.run,
}
"""What a run predicts -> what is made of films then."""


def read_decisions(workdir: Path, loaded: LoadedRun) -> Decisions:
    """Find thresholds and temperatures in the scores of this very checkpoint, if there are any."""
    names = loaded.objective.findings
    nothing = np.full(len(names), np.nan)
    # What --task=evaluate scored sees whole splits, and comes before what training looked at. A
    # refitted head was trained on validation; scores of test have thresholds from before that.
    places = ["test"] if refitted(workdir) else ["val", "test", "train"]
    folders = [*(f"classification_{split}" for split in places), "classification"]
    paths = [workdir / "eval" / f / f"step_{loaded.step}" / "metrics.json" for f in folders]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        print(f"note: step {loaded.step} has no scores of the run's own data, so no finding is"
              f" called present or absent; first --task=evaluate --workdir={workdir}")  # fmt: skip
        return Decisions("", nothing, nothing)
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


class _Writer:
    """Writes the table line by line, and the maps."""

    def __init__(self, output: Path, objective: Any, decisions: Decisions, *, method: heat.Method):
        self._output, self._decisions, self._method = output, decisions, method
        self._findings: tuple[str, ...] = objective.findings
        self._shared = heat.shared_by(objective, method)
        self._number = self.usable = 0
        each = [f"{kind}:{name}" for name in self._findings for kind in EACH]
        self._table = Table(output / PREDICTIONS, [*COLUMNS, *each])
        if not np.isnan(decisions.threshold).all():
            print("the likeliest findings of each film; * stands behind a probability that reaches"
                  " the finding's threshold")  # fmt: skip

    def close(self) -> None:
        """Close the table."""
        self._table.close()

    def reject(self, name: str, reason: str) -> None:
        """Write the line of a file that cannot be used."""
        self._number += 1
        self._table.write([self._number, name, "rejected", reason])
        print(f"{self._number} {shown(name)}: rejected: {reason}")

    def write(self, name: str, film: Film, told: Told) -> None:
        """Write the line of a film, and its maps."""
        self._number += 1
        self.usable += 1
        facts = [" ".join(film.flags), film.view, film.kind, *film.pixels.shape]
        self._table.write([self._number, name, "ok", "", *facts, *self._cells(told.logits)])
        self._say(name, film, told.logits)
        for finding, values in told.maps.items():
            self._map(film, told, finding, values)

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
        print(f"{self._number} {shown(name)}: {likeliest}{warned}")

    def _map(self, film: Film, told: Told, c: int, values: Float[np.ndarray, "gh gw"]) -> None:
        """Draw where the model looked for one finding."""
        name, limit = self._findings[c], self._decisions.threshold[c]
        called = _called(told.logits[c], limit)
        decided = f"threshold {expit(limit):.2f}: {called}" if called else "no threshold"
        scale = heat.SCALES[self._method]
        if self._shared > 1:
            which = "all" if self._shared == len(self._findings) else f"{self._shared} of the"
            scale = dataclasses.replace(scale, unit=f"{scale.unit}; the same for {which} findings")
        lines = [f"film {self._number}: {name} {expit(told.logits[c]):.2f} ({decided})"]
        lines += [f"{flag}: {FLAGS[flag]}" for flag in film.flags]
        picture = overlay.draw(
            film.pixels,
            values,
            told.placed,
            lines=tuple(lines),
            scale=scale,
        )
        file = f"{self._number:04d}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}.png"
        (self._output / MAPS / file).write_bytes(picture)


def _called(logit: float, threshold: float) -> str:
    return "" if np.isnan(threshold) else "yes" if logit >= threshold else "no"
