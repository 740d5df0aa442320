"""What a config means for one film: its view, its place in a batch, its FLOPs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xmae_jax import flops, rng
from xmae_jax.chips import chip_of
from xmae_jax.config import Config, ConfigError, objective_of
from xmae_jax.data.records import FINDINGS, NO_REPORT, encode_image
from xmae_jax.data.views import VIEWS
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.optim import split


def view_of(config: Config, objective: Any, *, train: bool, tokenizer: Path | None = None) -> Any:
    """Build the objective's view of a record, with what is random in it for training alone.

    tokenizer: the run's copy, where it reads reports.
    """
    cls = VIEWS[objective.view]
    fields = [field.name for field in dataclasses.fields(cls)]
    text = config.data.text
    if (text is None) == ("report" in fields):
        what = "is to say how reports are read" if text is None else "the objective reads no report"
        raise ConfigError(f"config.data.text: {what}")
    for name in ("crop_scale", "augment"):
        if getattr(config.data, name) is not None and name not in fields:
            raise ConfigError(f"config.data.{name}: the objective's view does not know it")
    known = dict(
        image_size=config.image_size,
        grid=objective.grid,
        contour_region=config.data.contour_region,
        crop_scale=config.data.crop_scale if train else None,
        augment=config.data.augment if train else None,
        findings=getattr(objective, "findings", ()),
        views=text and text.views,
        report=text and dataclasses.replace(text, tokenizer=tokenizer and str(tokenizer)),
    )
    try:
        return cls(**{name: known[name] for name in fields})
    except ValueError as error:
        raise ConfigError(f"config: {error}") from None


def _example(config: Config, objective: Any) -> dict[str, np.ndarray]:
    """Make one row of a batch from a blank film."""
    side = config.image_size
    record = {
        "image": encode_image(np.zeros((side, side), np.uint8)),
        "valid_box": np.array([0, 0, side, side]),
        "lung_mask": None,
        "lung_hull": None,
        "mask_source": "none",
        "view": "",
        "labels": np.full(len(FINDINGS), np.nan, np.float32),
        "report": NO_REPORT,
    }
    row = view_of(config, objective, train=False)(record, np.random.default_rng(0))
    return {**row, "mask": np.array(True), "id": np.zeros(2, np.int32)}


def batch_shapes(config: Config, objective: Any, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe a batch as the loader would deliver it."""
    example = _example(config, objective)
    return {n: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for n, x in example.items()}


def one_film(config: Config, *, gradient: bool) -> tuple[Any, Any]:
    """Return one film's loss, or its gradient, and shapes of its arguments.

    Attention is plain, whose products can be counted.
    """
    objective = objective_of(dataclasses.replace(config, attention="plain"), OBJECTIVES)
    key, step = rng.key(0, "train"), jnp.zeros((), jnp.int32)
    params, frozen = split(jax.eval_shape(objective.init, key), config.optim.freeze)
    extra = jax.eval_shape(objective.start, params)

    def loss(params: Any, frozen: Any, extra: Any, batch: Any) -> Any:
        rows = objective.prepare(batch, key, step).batch
        out = objective.loss(params, frozen, extra, rows, key, step)
        return jnp.sum(jnp.stack(list(out.totals.values())))

    args = (params, frozen, extra, batch_shapes(config, objective, 1))
    return (jax.value_and_grad(loss) if gradient else loss), args


def film_flops(config: Config) -> Counter[str]:
    """Count the forward FLOPs of one film by part of the model."""
    fn, args = one_film(config, gradient=False)
    return flops.matmul_flops(fn, *args)


def mfu_of_speed(config: Config, mesh: Mesh) -> float | None:
    """Return the model FLOPs utilisation at one film a second; None where the chip is unknown."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    total = flops.FORWARD_AND_BACKWARD * sum(film_flops(config).values())
    return total / (chip.flops * mesh.size)
