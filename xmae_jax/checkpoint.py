"""Checkpoints by Orbax: asynchronous, atomic, restored onto whatever mesh there is now."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from xmae_jax.typing import Params, TrainState, leaf_path


def flatten(tree: Any) -> dict[str, Any]:
    """Turn any tree into path -> leaf; the form in which a state is saved."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """Undo `flatten` into the structure of `like`."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(structure, [flat[leaf_path(path)] for path, _ in paths])


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: str | os.PathLike, *, keep: int):
        directory = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            directory,
            options=options,
            item_names=("state",),
            item_handlers={"state": ocp.StandardCheckpointHandler()},
        )

    @property
    def latest(self) -> int | None:
        """The newest complete step, if there is any."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Copy the state off the devices now and write it behind the loop's back."""
        self.wait()
        if step != self.latest:
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(flatten(state)))
            )

    def restore(self, step: int, like: Any) -> Any:
        """Read a step; `like` gives structure, shapes and shardings.

        Raises ValueError naming every leaf that is not there or has another shape.
        """
        saved = self._manager.item_metadata(step)["state"]
        shapes = {name: tuple(leaf.shape) for name, leaf in saved.tree.items()}
        _compare(shapes, {n: x.shape for n, x in flatten(like).items()}, f"checkpoint {step}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(flatten(like)))
        return unflatten(self._manager.restore(step, args=args)["state"], like)

    def wait(self) -> None:
        """Block until the save under way is complete; raise what it raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish and release."""
        self._manager.close()


def _compare(saved: dict[str, tuple], wanted: dict[str, tuple], where: str) -> None:
    wrong = [f"missing {n}" for n in wanted if n not in saved]
    wrong += [f"extra {n}" for n in saved if n not in wanted]
    wrong += [
        f"{n} is {saved[n]} there and {tuple(shape)} here"
        for n, shape in wanted.items()
        if n in saved and saved[n] != tuple(shape)
    ]
    if wrong:
        raise ValueError(f"{where}: " + "; ".join(sorted(wrong)))


def load_params(run: str | os.PathLike, params: Params, *, shardings: Params) -> Params:
    """Read the newest parameters of another run, trained or frozen there; `params` gives shapes.

    Raises ValueError with the list of what is missing, extra or of another shape.
    """
    directory = Path(run).absolute() / "checkpoints"
    if not directory.is_dir():
        raise ValueError(f"{run} has no checkpoints")
    with ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_names=("state",),
        item_handlers={"state": ocp.PyTreeCheckpointHandler()},
    ) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"{run} has no complete checkpoint")
        saved = {
            name.partition("/")[2]: (name, tuple(leaf.shape))
            for name, leaf in manager.item_metadata(step)["state"].tree.items()
            if name.startswith(("params/", "frozen/"))
        }
        wanted, where = flatten(params), flatten(shardings)
        shapes = {name: shape for name, (_, shape) in saved.items()}
        _compare(shapes, {n: x.shape for n, x in wanted.items()}, f"{run}, step {step}")
        target = {
            saved[name][0]: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[name])
            for name, leaf in wanted.items()
        }
        args = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        restored = manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    return unflatten({name: restored[saved[name][0]] for name in wanted}, params)


def digests(tree: Any) -> dict[str, str]:
    """Return path -> sha256 over path, shape, dtype and values of every leaf."""
    out = {}
    for name, leaf in flatten(tree).items():
        array = np.asarray(jax.device_get(leaf))
        head = f"{name} {array.shape} {array.dtype.name}".encode()
        out[name] = hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
    return out
