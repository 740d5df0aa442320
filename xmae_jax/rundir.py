"""The record of a run, `run.json`: who it is, which data it reads, and how often it went back."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from xmae_jax.seal import json_digest, seal, unseal
from xmae_jax.writers import write_atomic

TOKENIZER = "tokenizer.model"
"""A run's own copy of what cuts its reports into tokens."""
OURS = ("lock", "run.json", "config.json", "metrics.jsonl", "checkpoints", TOKENIZER)


class RunDirectoryError(OSError):
    """A run directory that cannot be trusted; main exits 74."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory is made of."""

    workdir: Path
    id: str
    """Drawn once; every checkpoint carries it."""
    sources: list[dict[str, Any]]
    """Number of records, digest, and how films became squares, of each source; for reports also
    the tokenizer's digest, the name of what was done to texts before, and the policy on marks."""
    offsets: tuple[tuple[int, int], ...] = ()
    """Roll-backs: (first step, batches passed over from there on)."""
    configs: tuple[str, ...] = ()
    """Digests of the configs and data that the run has had; its checkpoints have one of them."""
    trained_on: list[dict[str, Any]] | None = None
    """Every data set that the run has had, with its licences: added to, never taken from.
    (`manifest.data_set`.) None if it was begun by a version that did not write it."""

    def digest(self, config: str) -> str:
        """Return the digest of a config (as JSON) and the data, to which checkpoints belong."""
        return json_digest([config, self.sources])

    def tree(self) -> dict[str, Any]:
        """Return everything but the place, as JSON."""
        tree = dataclasses.asdict(self)
        del tree["workdir"]
        return tree

    def write(self) -> None:
        """Write `run.json`."""
        write_atomic(self.workdir / "run.json", json.dumps(seal(self.tree()), indent=1) + "\n")


def new_id() -> str:
    """Draw the identity of a new run."""
    return uuid.uuid4().hex


def run_of(workdir: Path, tree: dict[str, Any]) -> Run:
    """Undo `Run.tree`."""
    offsets = tuple((first, offset) for first, offset in tree["offsets"])
    configs, trained_on = tuple(tree["configs"]), tree.get("trained_on")
    return Run(workdir, tree["id"], tree["sources"], offsets, configs, trained_on)


def read_run(workdir: Path) -> Run | None:
    """Read the record of a run; None if there is none, RunDirectoryError if it is damaged."""
    path = workdir / "run.json"
    if not path.is_file():
        return None
    try:
        return run_of(workdir, unseal(path.read_text()))
    except ValueError as error:
        raise RunDirectoryError(f"{path}: {error}") from None


def last_logged(workdir: Path) -> int:
    """Return the last step that the log knows of since the last roll-back, 0 for none."""
    last = 0
    log = workdir / "metrics.jsonl"
    for text in log.read_text().splitlines() if log.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:  # the half line of a killed run
            continue
        restart = line.get("event") in ("rollback", "fallback")
        last = line["step"] if restart else max(last, line["step"])
    return last


def set_aside(path: Path) -> Path:
    """Move a file or directory into `abandoned/` beside it, under a name that is free."""
    target = path.parent / "abandoned" / path.name
    target.parent.mkdir(exist_ok=True)
    count = 1
    while target.exists():
        count += 1
        target = target.with_name(f"{path.name}.{count}")
    return path.rename(target)


def set_aside_after(workdir: Path, step: int) -> None:
    """Set aside what a run drew and measured after a step that it will now reach another way."""
    made = (*workdir.glob("eval/*/step_*"), *workdir.glob("pictures/step_*"))
    for path in (*made, *workdir.glob("debug/step_*")):
        if int(path.stem.removeprefix("step_")) > step:  # another process's end in .1, .2, ...
            set_aside(path)
    if (workdir / "final.json").is_file():
        set_aside(workdir / "final.json")
