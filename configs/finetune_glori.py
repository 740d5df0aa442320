"""GLoRI on a frozen ViT-L/16 at 512 px: 14 findings of ChestX-ray14.

Command:  python -m xmae_jax.main --config=configs/finetune_glori.py --config.data.path=SHARDS
          --config.init_from=runs/pretrain_640
          whose encoder it takes, whatever size is named here; None takes a random one.
Hardware: one GPU, for the features once and for 13 heads at once. Not yet run there.
Expected: not yet run at full size; ":smoke" takes about a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "finetune_glori"
    c.image_size = 512
    # Yang et al., CheXFound (arXiv 2502.05142): patches of the last four blocks.
    encoder = common.encoder("L", patch_size=16)
    common.supervised(c, common.CHESTXRAY14, head=common.glori(), encoder=encoder)
    common.probe(c)
    if arg == "smoke":
        common.smoke(c, image_size=64)
        c.objective.findings = common.PHANTOMS
        return c
    if arg:
        raise ValueError(f"finetune_glori knows the argument smoke, not {arg!r}")
    return c
