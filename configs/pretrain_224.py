"""Pre-train ViT-L/16 at 224 px: the first link of the chain 224, 640, 1280.

Command:  python -m xmae_jax.main --config=configs/pretrain_224.py --config.data.path=SHARDS
Hardware: one host with GPUs or TPUs; set micro_batch_size to what they hold. Not yet run there.
Expected: not yet run at full size; ":smoke" takes about a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "pretrain_224"
    c.image_size = 224
    # He et al. (arXiv 2111.06377): batch 4,096, warm-up over 5 % of the run. 200,000 steps are 800
    # epochs of a million films.
    c.batch_size, c.total_steps, c.warmup_steps = 4096, 200_000, 10_000
    c.objective.encoder = common.encoder("L", patch_size=16)
    # Eight blocks of width 512 (He et al., table 1); heads of 128 fill a TPU's matrix unit.
    c.objective.decoder = common.decoder(512, 8, 4)
    # 22 of 196 patches: the share that the ratios 0.95 and 0.85 leave of the released grid (46 of
    # 400). Xiao et al. (WACV 2023, lambert-x/medical_mae) find 90 % hidden best for chest films,
    # and crops of 0.5 to 1.
    c.objective.mask.keep = 22
    c.data.crop_scale = (0.5, 1.0)
    if arg == "smoke":
        return common.smoke(c, image_size=112, keep=8)
    if arg:
        raise ValueError(f"pretrain_224 knows the argument smoke, not {arg!r}")
    return c
