"""The quick start: a small masked auto-encoder on phantom films, a few minutes on two CPU cores.

Command:  the first line of README.md, which also makes the films.
Hardware: two CPU cores.
Expected: three to four minutes; the error of hidden patches of held-out phantoms ends 36 % below
          the best predictor without a model (0.0161 against 0.0251 for the mean training film).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "quickstart"
    c.image_size, c.compute_dtype = 128, "float32"
    c.batch_size, c.total_steps, c.warmup_steps = 32, 700, 60
    c.log_every, c.checkpoint_every, c.eval_every, c.picture_every = 20, 200, 700, 350
    c.data.path = "runs/phantoms/shards"
    c.data.threads = 2
    c.data.crop_scale = (0.8, 1.0)
    c.objective.encoder = common.encoder("Ti", patch_size=16, base_grid=8) | dict(depth=4)
    c.objective.decoder = common.decoder(128, 2, 4)
    c.objective.mask.update(keep=16, ratio_inside=0.8, ratio_outside=0.7)
    # Pixels, so that errors can be compared with predictors that have no model.
    c.objective.norm_pix_loss = False
    c.objective.ema_decay = 0.995
    # Peak 1e-3, found on phantoms.
    c.optim.blr = 1e-3 * 256 / c.batch_size
    if arg == "smoke":
        c.name += "_smoke"
        c.total_steps, c.warmup_steps, c.batch_size, c.eval_rows = 40, 4, 16, 16
        c.log_every, c.checkpoint_every, c.eval_every, c.picture_every = 1, 10, 40, 40
        return c
    if arg:
        raise ValueError(f"quickstart knows the argument smoke, not {arg!r}")
    return c
