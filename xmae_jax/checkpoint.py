"""Checkpoints by Orbax: asynchronous, atomic, and believed only after their digests agree.

A step directory holds the state (path -> array) and, committed with it, a `digest` item: step, run
and config that it belongs to, and shape, dtype and digest of every leaf, taken before the save.

Differs from Orbax's CheckpointManager: a restore compares digests and falls back to the step
before; a saved step is read back before an older one is removed; steps that are abandoned are
renamed, never overwritten; what this run did not write is left alone.

Every process writes and reads its own part of the state. Process 0 alone judges what it reads,
renames and removes, and the others go by what it says.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from xmae_jax import hosts
from xmae_jax.digest import flatten, leaf_digests, unflatten
from xmae_jax.rundir import Run, set_aside
from xmae_jax.seal import seal, unseal
from xmae_jax.typing import Params, TrainState

_REMOVING = ".removing"
_LEFTOVER = re.compile(rf"\d+(\.orbax-checkpoint-tmp.*|{re.escape(_REMOVING)})")


class CheckpointError(OSError):
    """A save that failed, or no checkpoint that can be used; main exits 74."""


class NoneUsable(CheckpointError):
    """There are steps, and none verifies; `damaged` of them were written by this run."""

    def __init__(self, text: str, damaged: list[int]):
        super().__init__(text)
        self.damaged = damaged


class Unusable(Exception):
    """Why a step directory cannot be restored."""


class Foreign(Unusable):
    """It is not a step of this run."""


def step_directories(workdir: str | os.PathLike) -> list[Path]:
    """List what is named like a step, newest first."""
    folder = Path(workdir).absolute() / "checkpoints"  # Orbax wants it so
    named = [p for p in folder.glob("*") if re.fullmatch("0|[1-9][0-9]*", p.name) and p.is_dir()]
    return sorted(named, key=lambda p: -int(p.name))


def own_steps(workdir: str | os.PathLike, run: str) -> list[int]:
    """List the steps that a run wrote, newest first, by their digest items."""
    own = []
    for directory in step_directories(workdir):
        with contextlib.suppress(Unusable):
            read_digest(directory, run)
            own.append(int(directory.name))
    return own


def read_digest(directory: Path, run: str | None) -> dict[str, Any]:
    """Read a step's digest item; Unusable if it is damaged, of another step, or of another run."""
    try:
        digest = unseal((directory / "digest" / "metadata").read_bytes())
        step, owner = digest["step"], digest["run"]
    except FileNotFoundError:
        if all((directory / item).is_dir() for item in ("state", "digest")):
            raise Unusable("digest/metadata is missing") from None
        raise Foreign("holds no digest: empty, or not written by xmae_jax") from None
    except (OSError, ValueError, KeyError) as error:
        raise Unusable(f"digest/metadata is damaged ({error})") from None
    if str(step) != directory.name:
        raise Foreign(f"holds step {step} under another number")
    if run is not None and owner != run:
        raise Foreign("belongs to another run")
    return digest


def _compare_digests(leaves: dict[str, Any], found: dict[str, str]) -> None:
    wrong = sorted(name for name, digest in found.items() if leaves[name]["digest"] != digest)
    if wrong:
        more = f" and {len(wrong) - 1} more" * (len(wrong) > 1)
        raise Unusable(f"{wrong[0]}{more} does not have the values that were saved")


def _read(directory: Path, target: dict[str, Any], restore_args: Any) -> dict[str, Any]:
    """Read the leaves of `target`; Unusable whatever goes wrong."""
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    # No process waits here for another, which may find damage and not come.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            state = reader.restore(directory / "state", args=args)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        text = " ".join(str(error).split())
        raise Unusable(f"cannot be read: {type(error).__name__}: {text[:300]}") from None
    for name, wanted in target.items():  # damaged metadata make Orbax return other things
        found = state.get(name)
        if not isinstance(found, jax.Array | np.ndarray) or (
            (found.shape, found.dtype) != (tuple(wanted.shape), wanted.dtype)
        ):
            raise Unusable(f"{name} is not the array that was saved")
    return state


def read_back(directory: Path, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read a step into host memory, whole; Unusable if it is not what was saved."""
    target = {
        name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
        for name, leaf in leaves.items()
    }
    args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in target}
    state = _read(directory, target, args)
    with jax.default_device(_host_device()):
        for name, leaf in state.items():  # one at a time, should it go to a device after all
            _compare_digests(leaves, leaf_digests({name: leaf}))
    return state


def _host_device() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return None


class Restored(NamedTuple):
    """A step that verified, and what was found on the way to it."""

    step: int
    state: Any
    config: str
    """Digest of the config under which it was saved."""
    damaged: dict[int, str]
    """Newer steps that are not what was saved, and why."""
    foreign: dict[int, str]
    """Newer directories that are no steps of this run, and why."""


class Checkpoints:
    """The checkpoints of one run directory, by the run that owns it."""

    def __init__(self, workdir: str | os.PathLike, *, run: Run, config: str, keep: int):
        """Clear away what a killed save or removal left.

        config: digest of what the run is made of; keep: how many steps stay.
        """
        self._workdir, self._run, self._config, self._keep = workdir, run, config, keep
        self._folder = Path(workdir).absolute() / "checkpoints"
        for path in self._folder.glob("*"):
            if hosts.is_first() and _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.StandardCheckpointHandler(), digest=ocp.JsonCheckpointHandler()
        )
        self._saver = ocp.AsyncCheckpointer(handler)
        self._saving: int | None = None
        self.newest: int | None = None
        """The step that was restored or saved last."""

    def save(self, step: int, state: TrainState) -> None:
        """Copy the state off the devices now and write it behind the loop's back."""
        flat = flatten(state)
        digests = leaf_digests(flat)
        leaves = {
            name: {"shape": list(x.shape), "dtype": x.dtype.name, "digest": digests[name]}
            for name, x in flat.items()
        }
        digest = seal({"step": step, "run": self._run.id, "config": self._config, "leaves": leaves})
        if hosts.is_first():  # the others wait for it where Orbax begins to save
            self._folder.mkdir(exist_ok=True)
            if (self._folder / str(step)).exists():
                self.set_aside(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(flat), digest=ocp.args.JsonSave(digest)
        )
        self._saving = self.newest = step
        with _explained(self._folder / str(step)):
            self._saver.save(self._folder / str(step), args)

    def settle(self) -> str | None:
        """Wait for the save under way, read it back, remove old steps; say what is wrong with it.

        Raises CheckpointError if it could not be written.
        """
        if self._saving is None:
            return None
        step, self._saving = self._saving, None
        with _explained(self._folder / str(step)):
            self._saver.wait_until_finished()
        problem = hosts.from_first(lambda: self._confirm(step))
        if problem:
            self.newest = None
        _give_back_memory()
        return problem

    def _confirm(self, step: int) -> str | None:
        """Read a step back, and remove old ones or say what is wrong with it."""
        with _explained(self._folder / str(step)):
            _sync(self._folder / str(step))
        try:
            digest = read_digest(self._folder / str(step), self._run.id)
            read_back(self._folder / str(step), digest["leaves"])
        except Unusable as error:
            self.set_aside(step)
            return f"checkpoint {step}: {error}; set aside, older ones are kept"
        own = own_steps(self._workdir, self._run.id)
        for old in [old for old in own if old <= step][self._keep :]:
            self._remove(old)
        return None

    def restore(self, like: Any) -> Restored | None:
        """Read the newest step that verifies; None if there is no step at all. Changes nothing.

        `like` gives structure, shapes and shardings. Raises NoneUsable if no step can be used, and
        ValueError if the newest is of a config that this run never had, or names every leaf
        that is not there or has another shape.
        """
        wanted = flatten(like)
        damaged: dict[int, str] = {}
        foreign: dict[int, str] = {}
        steps = hosts.from_first(lambda: [int(d.name) for d in step_directories(self._workdir)])
        for step in steps:
            try:
                digest = self._digest(step)
                shapes = {name: tuple(leaf["shape"]) for name, leaf in digest["leaves"].items()}
                _compare_shapes(shapes, wanted, f"checkpoint {step}")
                if digest["config"] not in (self._config, *self._run.configs):
                    raise ValueError(
                        f"checkpoint {step} was saved under another config or with other data than"
                        f" config.json and run.json of {self._workdir} say"
                    )
                args = ocp.checkpoint_utils.construct_restore_args(wanted)
                read = partial(_read, self._folder / str(step), wanted, args)
                state = hosts.together(read, Unusable)
                # A copy on one host may be damaged where the others' are sound.
                compare = partial(_compare_digests, digest["leaves"], leaf_digests(state))
                hosts.together(compare, Unusable)
            except Unusable as error:
                kind = foreign if isinstance(error, Foreign) else damaged
                kind[step] = f"checkpoint {step}: {error}"
            else:
                self.newest = step
                state = unflatten(state, like)
                return Restored(step, state, digest["config"], damaged, foreign)
        if damaged or foreign:
            told = "\n  ".join((*damaged.values(), *foreign.values()))
            raise NoneUsable(f"{self._folder}: no checkpoint can be used:\n  {told}", [*damaged])
        return None

    def _digest(self, step: int) -> dict[str, Any]:
        """Read a step's digest item, for all processes; raises as `read_digest`."""

        def read() -> tuple[str, Any]:
            try:
                return "", read_digest(self._folder / str(step), self._run.id)
            except Unusable as error:
                return type(error).__name__, str(error)

        problem, found = hosts.from_first(read)
        if problem:
            raise (Foreign if problem == "Foreign" else Unusable)(found)
        return found

    def set_aside(self, step: int) -> None:
        """Move a step directory into `abandoned/`, whoever wrote it; process 0 does."""
        if hosts.is_first():
            set_aside(self._folder / str(step))

    def close(self) -> None:
        """Finish and release."""
        self._saver.close()

    def _remove(self, step: int) -> None:
        """Remove a step so that a kill in the middle leaves nothing that looks like one."""
        going = self._folder / f"{step}{_REMOVING}"
        (self._folder / str(step)).rename(going)
        shutil.rmtree(going)


def _give_back_memory() -> None:
    """Return what the copies of the state took; glibc would keep it, scattered, and grow."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a save raises into a CheckpointError that names path and free bytes."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many kinds
        free = shutil.disk_usage(path.parent).free
        text = " ".join(str(error).split())
        full = "RESOURCE_EXHAUSTED" in text or "No space left" in text
        raise CheckpointError(
            f"{path} could not be saved: {'the disk is full' if full else text[:300]};"
            f" {free:,} bytes are free there. Older checkpoints are kept: the same command goes on"
            " from them once there is room."
        ) from error


def _sync(directory: Path) -> None:
    """Flush a step and its name to the disk; Orbax does so for array data only.

    What was cached is dropped, so that reading it back asks the disk.
    """
    for path in (*directory.rglob("*"), directory, directory.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _compare_shapes(saved: dict[str, tuple], wanted: dict[str, Any], where: str) -> None:
    wrong = [f"missing {n}" for n in wanted if n not in saved]
    wrong += [f"extra {n}" for n in saved if n not in wanted]
    wrong += [
        f"{n} is {saved[n]} there and {tuple(leaf.shape)} here"
        for n, leaf in wanted.items()
        if n in saved and saved[n] != tuple(leaf.shape)
    ]
    if wrong:
        raise ValueError(f"{where}: " + "; ".join(sorted(wrong)))


def load_params(
    run: str | os.PathLike, params: Params, *, shardings: Params, within: str = ""
) -> tuple[Params, str]:
    """Read the newest parameters of another run, trained or frozen there; `params` gives shapes.

    within: what the paths of `params` stand below, such as `head/decoder/`. Returns those of the
    top-level parts that both have, and what is told of the others. Of a parameter that the run kept
    an average of, that is read: evaluation saw it. Raises ValueError with the list of what is
    missing, extra or of another shape within these parts, and CheckpointError if the newest step is
    not what was saved.
    """
    steps = hosts.from_first(lambda: [os.fspath(path) for path in step_directories(run)])
    if not steps:
        raise ValueError(f"{run} has no checkpoints")
    newest = Path(steps[0])
    try:
        leaves = read_digest(newest, None)["leaves"]
        saved = {  # a later one counts
            name.removeprefix(prefix): name
            for prefix in (f"{top}/{within}" for top in ("params", "frozen", "extra/ema"))
            for name in leaves
            if name.startswith(prefix)
        }
        parts, told = shared_parts(saved, params)
        told += " (averages)" * any(name.startswith("extra/") for name in saved.values())
        saved = {name: full for name, full in saved.items() if name.partition("/")[0] in parts}
        params = {part: params[part] for part in parts}
        wanted, where = flatten(params), flatten(shardings)
        shapes = {name: tuple(leaves[full]["shape"]) for name, full in saved.items()}
        _compare_shapes(shapes, wanted, os.fspath(newest))
        target = {
            saved[name]: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[name])
            for name, leaf in wanted.items()
        }
        args = ocp.checkpoint_utils.construct_restore_args(target)
        restored = _read(newest, target, args)
        _compare_digests(leaves, leaf_digests(restored))
    except Unusable as error:
        raise CheckpointError(f"{newest}: {error}") from None
    return unflatten({name: restored[saved[name]] for name in wanted}, params), told


def shared_parts(given: Iterable[str], wanted: Iterable[str]) -> tuple[list[str], str]:
    """Return the top-level parts of two sets of paths that both have, and what of the others.

    Raises ValueError if there is none.
    """
    there, here = ({name.partition("/")[0] for name in names} for names in (given, wanted))
    if not there & here:
        raise ValueError(f"it holds {', '.join(sorted(there))}, and wanted is {sorted(here)}")
    told = [", ".join(sorted(there & here))]
    told += [f"{', '.join(sorted(there - here))} left out"] * bool(there - here)
    told += [f"{', '.join(sorted(here - there))} starts anew"] * bool(here - there)
    return sorted(there & here), "; ".join(told)


def verify(workdir: str | os.PathLike, run: str | None) -> list[dict[str, Any]]:
    """Read every step directory; return step, status and problem of each, newest first.

    status: "verified", "damaged" (does not read back, or holds a number that is not finite) or
    "foreign" (left alone by every run here).
    """
    report = []
    for directory in step_directories(workdir):
        line = {"step": int(directory.name), "status": "verified", "problem": None}
        report.append(line)
        try:
            leaves = read_digest(directory, run)["leaves"]
            for name, leaf in read_back(directory, leaves).items():
                if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
                    raise Unusable(f"{name} holds a number that is not finite")
        except Unusable as error:
            if not directory.exists():  # a run at work has removed it meanwhile
                report.pop()
                continue
            status = "foreign" if isinstance(error, Foreign) else "damaged"
            line |= {"status": status, "problem": str(error)}
    return report
