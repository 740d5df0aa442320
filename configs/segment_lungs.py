"""The lung model: contours of both lungs on frontal films, small enough to be shipped.

Command:  python -m xmae_jax.main --config=configs/segment_lungs.py --config.data.path=SHARDS
          on shards whose masks have a known convention; `python -m benchmarks.segment_lungs`
          makes those of the shipped model, trains it in folds and scores it.
Hardware: one CPU core.
Expected: nine minutes; mean Dice on films of patients not seen, in three folds: 0.957 on
          Montgomery films (`lungs`), 0.930 on v7's (`lungs_with_heart`).
"""

from ml_collections import ConfigDict

from configs import common

# Strong, as real films are few: 77 may be used to train what is shipped.
AUGMENT = dict(
    rotate=15.0,
    scale=0.25,
    stretch=0.3,
    shift=0.12,
    mirror=0.5,
    gamma=0.6,
    contrast=0.5,
    invert=0.15,
    noise=0.06,
    blur=1.5,
    haze=0.7,
)


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "segment_lungs"
    c.image_size, c.compute_dtype = 256, "float32"
    c.batch_size, c.total_steps, c.warmup_steps = 12, 800, 80
    c.log_every, c.checkpoint_every, c.eval_every, c.picture_every = 50, 200, 400, 400
    c.data.threads = 2
    c.data.augment = ConfigDict(AUGMENT)
    # Peak 2e-3; not searched.
    c.optim.blr = 2e-3 * 256 / c.batch_size
    c.optim.b2, c.optim.weight_decay, c.optim.weight_decay_end = 0.99, 0.02, 0.02
    c.objective = ConfigDict(
        dict(
            name="segment",
            unet=dict(patch_size=4, widths=(32, 64, 96, 128)),
            ema_decay=common.optional(0.995),
        )
    )
    if arg == "smoke":
        c.name += "_smoke"
        c.image_size, c.total_steps, c.warmup_steps, c.batch_size, c.eval_rows = 64, 40, 4, 8, 16
        c.log_every, c.checkpoint_every, c.eval_every, c.picture_every = 1, 10, 40, 40
        c.objective.unet.update(widths=(16, 24, 32))
        c.optim.blr = 2e-3 * 256 / c.batch_size
        return c
    if arg:
        raise ValueError(f"segment_lungs knows the argument smoke, not {arg!r}")
    return c
