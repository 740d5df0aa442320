"""Where a run's weights come from: data sets with their terms, and the runs before it.

Everything is read from files that the runs left; what is not there is unknown, and said to be.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pydantic
import safetensors

from xmae_jax.checkpoint import read_digest, step_directories
from xmae_jax.data.manifest import DataError, data_set, file_digest
from xmae_jax.exports.terms import term_of
from xmae_jax.rundir import read_run
from xmae_jax.seal import json_digest

KEY = "xmae_jax"
"""Of a safetensors file's metadata: the origin of its weights, as JSON."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set that a run read."""

    name: str
    digest: str | None
    """sha256 of its manifest; None if it is not there (any more)."""
    records: str | None
    """sha256 over the manifest's entries of the training split, as the run's record has it."""
    changed: bool
    """It lies where the run's data did, and the run was not trained on it."""
    splits: dict[str, int]
    """Films of each."""
    licences: dict[str, int]
    """Films under each; "" is not known."""
    mask_licences: dict[str, int]
    """Films with given lung masks under each."""

    def refusals(self) -> list[str]:
        """Say why public weights may not come of it; an empty list if they may."""
        if self.digest is None:
            return [f"data set {self.name!r}: not there, so its licences are not known"]
        kinds = (("films", self.licences), ("lung masks", self.mask_licences))
        said = [f"data set {self.name!r}: not what the run was trained on"] * self.changed
        said += [
            f"data set {self.name!r}: {count:,} {what} under"
            f" {licence or 'no licence that is known'}: {term_of(licence).why}"
            for what, licences in kinds
            for licence, count in licences.items()
            if not term_of(licence).public
        ]
        if not self.licences:
            said.insert(0, f"data set {self.name!r}: its manifest names no licences")
        return said


@dataclasses.dataclass(frozen=True)
class Origin:
    """One run, or one file of weights, and what it was begun from."""

    name: str
    kind: str
    """"run", or "file" of weights."""
    step: int | None
    config_digest: str | None
    """sha256 of its config.json."""
    weights_digest: str | None
    """sha256 over the digests of a checkpoint's leaves, or of a file of weights."""
    recorded: bool
    """Whether its record names every data set that it was trained on."""
    data: tuple[DataSet, ...]
    parent: Origin | None
    """What `init_from` named, as it is now."""

    def refusals(self) -> list[str]:
        """Say why these weights may not be public; an empty list if they may."""
        said = [line for data in self.data for line in data.refusals()]
        if not self.data:
            said = [f"{self.kind} {self.name!r}: the data that it was trained on are not known"]
        elif not self.recorded:
            said.insert(
                0,
                f"{self.kind} {self.name!r}: its run.json, of an older version or missing, does not"
                " name all the data and licences that it was trained on",
            )
        if self.parent is not None:
            said += [f"{line} (by init_from)" for line in self.parent.refusals()]
        return said

    def chain(self) -> list[Origin]:
        """List this and all before it, newest first."""
        return [self, *(self.parent.chain() if self.parent else ())]


def origin_of_run(workdir: Path, *, step: int, before: tuple[Path, ...] = ()) -> Origin:
    """Read where the weights of a run's checkpoint come from.

    before: runs that were begun from this one, so that a circle ends.
    """
    path = workdir / "config.json"
    config = _read(path)
    run = read_run(workdir)
    recorded = run.trained_on if run else None
    digest = read_digest(workdir / "checkpoints" / str(step), None)
    parent, start = None, config.get("init_from")
    if start is not None and Path(start).absolute() not in (*before, workdir):
        parent = _origin_of(Path(start), before=(*before, workdir))
    return Origin(
        name=f"{config.get('name', workdir.name)} ({run.id[:8] if run else 'no run.json'})",
        kind="run",
        step=step,
        config_digest=file_digest(path) if path.is_file() else None,
        weights_digest=json_digest(digest["leaves"]),
        recorded=recorded is not None,
        data=tuple(_data_sets(config, recorded or [])),
        parent=parent,
    )


def _origin_of(start: Path, *, before: tuple[Path, ...]) -> Origin:
    """Read where weights come from that a run was begun with."""
    steps = step_directories(start) if start.is_dir() else []
    if steps:
        return origin_of_run(start.absolute(), step=int(steps[0].name), before=before)
    return origin_of_file(start / "model.safetensors" if start.is_dir() else start)


def origin_of_file(path: Path) -> Origin:
    """Read where the weights of a file come from: known of our own exports alone."""
    name = path.parent.name if path.name == "model.safetensors" else path.name
    if not path.is_file():
        return _nothing(name, None)
    digest = file_digest(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            told = (opened.metadata() or {})[KEY]
        origin = pydantic.TypeAdapter(Origin).validate_json(told, strict=True)
    except (KeyError, OSError, pydantic.ValidationError, safetensors.SafetensorError):
        return _nothing(name, digest)
    return dataclasses.replace(origin, kind="file", weights_digest=digest)


def _nothing(name: str, digest: str | None) -> Origin:
    return Origin(name, "file", None, None, digest, False, (), None)


def _data_sets(config: dict[str, Any], recorded: list[dict[str, Any]]) -> list[DataSet]:
    """List the data sets that a run has had, and those that are at its paths now, each once."""
    found = [DataSet(**one, changed=False) for one in recorded]
    had = {one["records"] for one in recorded}
    data = config.get("data", {})
    paths = data.get("path") or ()
    for path in (paths,) if isinstance(paths, str) else paths:
        try:
            now = data_set(path, split=data.get("split"))
        except DataError:
            now = DataSet(Path(path).name, None, None, False, {}, {}, {})
        else:
            now = DataSet(**now, changed=now["records"] not in had)
        found += [now] * (now not in found)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def to_json(origin: Origin) -> str:
    """Write an origin for a file's metadata."""
    return json.dumps(dataclasses.asdict(origin), sort_keys=True)
