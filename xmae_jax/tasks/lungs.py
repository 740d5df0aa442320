"""The shipped lung model: load its weights, run it on one film, and write them from a run.

`weights/lungs.safetensors` holds the averaged parameters in float16, `weights/lungs.json` their
sha256 and the sizes of the network. The model card is docs/lung_model.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float32, UInt8

from xmae_jax import checkpoint, config
from xmae_jax.data.lungs import MODEL
from xmae_jax.digest import flatten, nested
from xmae_jax.models.unet import UNetConfig
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.objectives.segment import Segment
from xmae_jax.rundir import read_run

LungModel = Callable[[UInt8[np.ndarray, "h w"]], Float32[np.ndarray, "m m 2"]]


class WeightsError(OSError):
    """The shipped weights are missing or not as they were written."""


def load_lung_model(weights: Path = MODEL) -> LungModel:
    """Return a function from a frontal film to each channel's probability, over the whole film.

    One shape is compiled, for the CPU, at the first film. The film's mirror image is looked at as
    well, and the mean of both returned. Raises WeightsError naming the file.
    """
    objective, params = _read(weights)
    size = objective.image_size

    def look(params: Any, film: Array) -> Array:
        both = jnp.stack([film, film[:, ::-1]])[..., None]
        one, other = jax.nn.sigmoid(objective.logits(params, both))
        return (one + other[:, ::-1]) / 2

    compiled = jax.jit(look)

    def run(pixels: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "m m 2"]:
        shrinks = max(pixels.shape) > size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        film = cv2.resize(pixels, (size, size), interpolation=how)
        return np.asarray(compiled(params, film))

    return run


def _read(weights: Path) -> tuple[Segment, Any]:
    """Read weights that are what their table says, onto the CPU."""
    try:
        data, told = weights.read_bytes(), json.loads(weights.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{weights}: the lung model does not read ({error})") from None
    found = hashlib.sha256(data).hexdigest()
    if found != told["sha256"]:
        raise WeightsError(f"{weights}: sha256 is {found}, expected {told['sha256']}")
    objective = Segment(
        image_size=told["image_size"],
        compute_dtype="float32",
        attention="plain",
        remat="none",
        unet=UNetConfig(told["patch_size"], tuple(told["widths"])),
        ema_decay=None,
    )
    cpu = jax.devices("cpu")[0]
    values = safetensors.numpy.load(data).items()
    return objective, nested({n: jax.device_put(x.astype(np.float32), cpu) for n, x in values})


def export_lung_model(run: Path, *, weights: Path = MODEL) -> None:
    """Write the averaged parameters of a run's newest checkpoint, and their table."""
    settings = config.resolve(config.from_json(run / "config.json"))
    objective = config.objective_of(settings, OBJECTIVES)
    newest = checkpoint.step_directories(run)[0]
    record = read_run(run)
    leaves = checkpoint.read_digest(newest, record.id if record else None)["leaves"]
    average = {name: leaf for name, leaf in leaves.items() if name.startswith("extra/ema/")}
    values = {
        name.removeprefix("extra/ema/"): np.asarray(value, np.float16)
        for name, value in checkpoint.read_back(newest, average).items()
    }
    wanted = flatten(jax.eval_shape(objective.init, jax.random.key(0)))
    if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in wanted.items()}:
        raise WeightsError(f"{newest}: its average is not that of a lung model")
    data = safetensors.numpy.save(dict(sorted(values.items())))
    told = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "image_size": objective.image_size,
        "patch_size": objective.unet.patch_size,
        "widths": list(objective.unet.widths),
        "steps": int(newest.name),
    }
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(data)
    weights.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
