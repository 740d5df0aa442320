"""ML-Decoder on a frozen ViT-L/16 at 512 px: 14 findings of ChestX-ray14.

Command:  python -m xmae_jax.main --config=configs/finetune_mldecoder.py --config.data.path=SHARDS
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
    c.name = "finetune_mldecoder"
    c.image_size = 512
    # Ridnik et al. (arXiv 2111.12933): patches of the last block, and their asymmetric loss.
    encoder = common.encoder("L", patch_size=16)
    common.supervised(c, common.CHESTXRAY14, head=common.ml_decoder(), encoder=encoder)
    c.objective.criterion = dict(
        kind="asymmetric", gamma_negative=4.0, gamma_positive=0.0, clip=0.05
    )
    common.probe(c)
    if arg == "smoke":
        common.smoke(c, image_size=64)
        c.objective.findings = common.PHANTOMS
        return c
    if arg:
        raise ValueError(f"finetune_mldecoder knows the argument smoke, not {arg!r}")
    return c
