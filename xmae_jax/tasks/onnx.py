"""A trained model as one ONNX file: film to logits and attention, or to features."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from xmae_jax.config import ConfigError
from xmae_jax.tasks.model import LoadedRun


def predictor(loaded: LoadedRun):
    """Return a function of `pixel_values` [b 1 h w] from -1 to 1, and of `valid` bool [b n].

    It gives a dict: what the head gives, or `cls` and `patches` of the encoder where there is none.
    """
    exact = dict(compute_dtype="float32", attention="plain", remat="none")
    objective = dataclasses.replace(loaded.objective, **exact)
    state = (loaded.params, loaded.frozen, loaded.extra)
    model = objective.averaged(*jax.tree.map(jnp.asarray, state))

    def predict(pixel_values: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
        films = pixel_values.transpose(0, 2, 3, 1)  # b h w 1
        if not hasattr(model, "head"):
            features = model.encoder(films)
            return {"cls": features.cls, "patches": features.patches}
        features = model.encoder(films, last=objective.head.layers)
        return model.head(features._replace(valid=valid))

    return predict


def write_onnx(
    folder: Path, loaded: LoadedRun, name: str, about: dict[str, str]
) -> tuple[str, list[str]]:
    """Write `<name>.onnx`; return how to use it, and what to know. ConfigError if it cannot be."""
    try:
        from xmae_jax.exports import graph  # needs a package that training does not
    except ImportError as error:
        if error.name != "onnx":
            raise
        raise ConfigError(
            "config.export.format: onnx needs the package onnx; pip install 'xmae_jax[convert]'"
        ) from None
    size, (gh, gw) = loaded.config.image_size, loaded.objective.grid
    inputs = {"pixel_values": ((1, size, size), jnp.float32), "valid": ((gh * gw,), jnp.bool_)}
    try:
        model = graph.to_onnx(predictor(loaded), inputs, name=name)
    except graph.NotConvertible as error:
        raise ConfigError(f"config.export.format: onnx has no counterpart for {error}") from None
    graph.save(model, folder / f"{name}.onnx", about)
    with_valid = len(model.graph.input) > 1
    feed, lines = '{"pixel_values": films}', []
    if with_valid:
        feed = '{"pixel_values": films, "valid": valid}'
        lines = [
            f"valid = np.ones((1, {gh * gw}), bool)  # False: patches of padding, row by row\n"
        ]
    use = f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}.onnx")
films = np.zeros((1, 1, {size}, {size}), np.float32)  # [films, 1, height, width], from -1 to 1
{"".join(lines)}outputs = session.run(None, {feed})
# {", ".join(f"{one.name} {_shape(one)}" for one in model.graph.output)}
```"""
    return use, []


def _shape(output) -> str:
    dims = output.type.tensor_type.shape.dim
    return "[" + " ".join(dim.dim_param or str(dim.dim_value) for dim in dims) + "]"
