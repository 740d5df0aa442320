"""Fine-tune a whole ViT-L/16 at 512 px for the 14 findings of ChestX-ray14.

Command:  python -m xmae_jax.main --config=configs/finetune_full.py --config.data.path=SHARDS
          --config.init_from=runs/pretrain_640
Hardware: one host with GPUs or TPUs; set micro_batch_size to what they hold. Not yet run there.
Expected: not yet run at full size; ":smoke" takes about a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "finetune_full"
    c.image_size = 512
    head = dict(kind="linear", pool="mean", layers=1)
    common.supervised(c, common.CHESTXRAY14, head=head, encoder=common.encoder("L", patch_size=16))
    # Xiao et al. (WACV 2023, lambert-x/medical_mae) and He et al. (arXiv 2111.06377, table 9):
    # layer-wise rates, stochastic depth, a mean over patches; 75 epochs of 78,468 films.
    c.batch_size, c.total_steps, c.warmup_steps = 256, 23_000, 1_500
    c.optim.update(blr=5e-4, b2=0.999, layer_decay=0.65, min_lr=1e-6)
    c.objective.drop_path = 0.1
    c.data.crop_scale = (0.75, 1.0)
    c.eval_every, c.picture_every = 1_000, 5_000
    if arg == "smoke":
        common.smoke(c, image_size=64)
        # What phantoms have.
        c.objective.findings = common.PHANTOMS
        return c
    if arg:
        raise ValueError(f"finetune_full knows the argument smoke, not {arg!r}")
    return c
