"""Small objectives, batches and shards that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from xmae_jax.models.pixel_decoder import DecoderConfig
from xmae_jax.models.vit import EncoderConfig
from xmae_jax.objectives.mae import Mae, MaskConfig


def small_encoder(**changes) -> EncoderConfig:
    """Set an encoder of 8 x 8 patches of 4 pixels."""
    fields = dict(
        width=16,
        depth=2,
        heads=2,
        patch_size=4,
        stem="linear",
        base_grid=8,
        positions="sincos",
        resample="cubic",
        registers=0,
        layer_scale=None,
        mlp="gelu",
        norm_eps=1e-6,
    )
    return EncoderConfig(**(fields | changes))


def small_mae(**changes) -> Mae:
    """Make a masked auto-encoder of 8 x 8 patches of 4 pixels, 12 of them visible."""
    fields = dict(
        image_size=32,
        compute_dtype="float32",
        attention="plain",
        remat="none",
        encoder=small_encoder(),
        decoder=DecoderConfig(kind="self", predict_share=1.0, width=8, depth=2, heads=2),
        mask=MaskConfig(kind="contour", keep=12, ratio_inside=0.9, ratio_outside=0.7),
        norm_pix_loss=False,
        norm_pix_floor=0.0,
        ema_decay=None,
    )
    return Mae(**(fields | changes))


def small_batch(rows: int = 8, *, seed: int = 0) -> dict:
    """Make random films with a lung in the middle and padding below."""
    draw = np.random.default_rng(seed)
    lung = np.zeros((rows, 32, 32), np.uint8)
    lung[:, 8:24, 6:26] = 1
    return {
        "image": jnp.asarray(draw.integers(0, 256, (rows, 32, 32, 1), dtype=np.uint8)),
        "lung": jnp.asarray(lung),
        "box": jnp.asarray(np.tile(np.array([0, 0, 0.875, 1], np.float32), (rows, 1))),
        "mask": jnp.ones(rows, bool),
        "id": jnp.asarray(np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.int32)),
    }


def described_batch(mae: Mae, rows: int) -> dict:
    """Describe a batch as the loader would deliver it."""
    side = mae.image_size
    shapes = {
        "image": ((side, side, 1), jnp.uint8),
        "lung": ((mae.grid[0] * 4, mae.grid[1] * 4), jnp.uint8),
        "box": ((4,), jnp.float32),
        "mask": ((), jnp.bool_),
        "id": ((2,), jnp.int32),
    }
    return {n: jax.ShapeDtypeStruct((rows, *shape), d) for n, (shape, d) in shapes.items()}
