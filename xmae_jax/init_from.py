"""Where a run's first parameters come from: another run, or weights of another code base."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import checkpoint
from xmae_jax.data.findings import place_of
from xmae_jax.digest import flatten, nested
from xmae_jax.heads.report import ReportHeadConfig
from xmae_jax.models import convert, convert_t5
from xmae_jax.models.t5 import T5Config
from xmae_jax.models.vit import EncoderConfig
from xmae_jax.models.weight_files import is_weights
from xmae_jax.typing import Params


def check(path: str) -> None:
    """Raise ValueError if there is neither a run with checkpoints nor a weights file."""
    if not checkpoint.step_directories(path) and not is_weights(Path(path)):
        raise ValueError(
            f"{path} has no checkpoints, and is no weights file: .safetensors, .pth, or a folder"
            " with config.json and model.safetensors (docs/weights.md)"
        )


def load_all(
    path: str | None, params: Params, *, shardings: Params, objective: Any
) -> tuple[Params, list[str]]:
    """Read what `init_from` holds, and over that what an objective's `decoder_from` does.

    path: None where nothing is wanted of it. As `load`; a ValueError begins with the config's key.
    """
    loaded, lines, key = {}, [], "init_from"
    try:
        if path is not None:
            loaded, lines = load(path, params, shardings=shardings, objective=objective)
        key, other = "objective.decoder_from", getattr(objective, "decoder_from", None)
        if other is not None:
            inner, where = params["head"]["decoder"], shardings["head"]["decoder"]
            config = objective.head.decoder
            decoder, told = load_decoder(other, inner, shardings=where, config=config)
            head = loaded.get("head", params["head"]) | {"decoder": decoder}
            loaded, lines = loaded | {"head": head}, lines + told
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return loaded, lines


def load_decoder(
    path: str, params: Params, *, shardings: Params, config: T5Config
) -> tuple[Params, list[str]]:
    """Read the decoder of a report run, or public T5 weights; ValueError as `load`."""
    if checkpoint.step_directories(path):
        loaded, told = checkpoint.load_params(
            path, params, shardings=shardings, within="head/decoder/"
        )
        return loaded, [f"decoder from {path}: {told}"]
    foreign = convert_t5.read_t5(Path(path))
    convert_t5.check_t5(foreign, config)
    lines = [f"decoder from {foreign.path}", *foreign.notes]
    return _placed(foreign.params, params, shardings), lines


def _placed(arrays: dict[str, np.ndarray], params: Params, shardings: Params) -> Params:
    """Lay arrays, by the paths of `params`, out on devices."""
    where = flatten(shardings)

    def place(name: str) -> jax.Array:
        array = arrays[name]
        return jax.make_array_from_callback(array.shape, where[name], lambda part: array[part])

    return nested({name: place(name) for name in flatten(params)})


def load(
    path: str, params: Params, *, shardings: Params, objective: Any
) -> tuple[Params, list[str]]:
    """Read the top-level parts of `params` that are in a run or a weights file.

    params: gives shapes; objective: whose settings the file's must be. Returns (a nested dict of
    these parts, lines to print). Raises ValueError with the list of what does not fit.
    """
    objective = getattr(objective, "objective", objective)  # inside one that fails on demand
    encoder = getattr(objective, "encoder", None)
    if checkpoint.step_directories(path):
        there = _of_run(path)
        _compare_settings(path, there, encoder)
        other = "head" in params and not _same_head(there, objective)
        parts = [name for name in params if name != "head" or not other]
        loaded, told = checkpoint.load_params(
            path,
            {name: params[name] for name in parts},
            shardings={name: shardings[name] for name in parts},
        )
        told += "; head starts anew" * other
        return loaded, [f"parameters from {path}: {told}"]
    if not isinstance(encoder, EncoderConfig):
        raise ValueError(f"{path} is an encoder, and this objective has none")
    foreign = convert.read_foreign(Path(path))
    parts, told = checkpoint.shared_parts(foreign.params, params)
    wanted = flatten({part: params[part] for part in parts})
    decoder = getattr(objective, "decoder", None)
    arrays, reshaped = convert.fit(
        foreign,
        {name: tuple(leaf.shape) for name, leaf in wanted.items()},
        encoder=encoder,
        decoder_heads=None if decoder is None else decoder.heads,
        norm_pix_loss=getattr(objective, "norm_pix_loss", None),
    )
    loaded = _placed(arrays, {part: params[part] for part in parts}, shardings)
    lines = [f"parameters from {foreign.path} ({foreign.table}): {told}"]
    return loaded, lines + foreign.notes + reshaped


def has_head(run: str, objective: Any) -> bool:
    """Say whether the head of an objective begins with that of what `init_from` names."""
    return bool(checkpoint.step_directories(run)) and _same_head(_of_run(run), objective)


def _of_run(run: str) -> dict[str, Any]:
    """Read the objective's settings of another run; empty if they are not there."""
    try:
        found = json.loads((Path(run) / "config.json").read_text())["objective"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _compare_settings(run: str, there: dict[str, Any], encoder: Any) -> None:
    """Raise ValueError with the settings that shapes do not show, and that are not the run's."""
    theirs = there.get("encoder")
    if not isinstance(encoder, EncoderConfig) or not isinstance(theirs, dict):
        return
    known = {key: theirs.get(key) for key in dataclasses.asdict(encoder)}
    # What shapes show is told with the shapes.
    hidden = ("base_grid", "norm_eps", "resample", "positions", "layer_scale", "patch_size")
    known |= dict.fromkeys(known.keys() - {*hidden})
    known["layer_scale"] = known["layer_scale"] is not None
    if wrong := convert.other_settings(known, encoder):
        raise ValueError(f"{run} does not fit:\n  " + "\n  ".join(wrong))


def _same_head(there: dict[str, Any], objective: Any) -> bool:
    """Say whether a run has the head of an objective, for the same findings in the same order."""
    if isinstance(getattr(objective, "head", None), ReportHeadConfig):
        # That both have one tokenizer is for the task to see to.
        return there.get("head") == json.loads(json.dumps(dataclasses.asdict(objective.head)))
    if not hasattr(objective, "findings"):  # many heads side by side
        return False
    try:
        findings = [place_of(name) for name in there["findings"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    head = json.loads(json.dumps(dataclasses.asdict(objective.head)))
    return (there.get("head"), findings) == (head, [place_of(n) for n in objective.findings])
