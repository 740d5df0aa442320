"""Pre-train ViT-L/16 at 640 px, from the parameters of pretrain_224: the chain's middle link.

Command:  python -m xmae_jax.main --config=configs/pretrain_640.py --config.data.path=SHARDS
          --config.init_from=runs/pretrain_224
Hardware: a pod; ask `--task=plan`. Not yet run at full size.
Expected: not yet run at full size; ":smoke" takes about a minute on two CPU cores.

Positions are fixed and counted in units of a 14 x 14 grid, so parameters fit at every size.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_224


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = pretrain_224.get_config()
    c.name = "pretrain_640"
    c.image_size, c.remat = 640, "dots"
    # A tenth of the first stage: it starts from trained parameters. Half its rate for the same
    # reason, as is usual for a change of resolution (Touvron et al., arXiv 1906.06423).
    c.total_steps, c.warmup_steps = 20_000, 1_000
    c.optim.blr = 7.5e-5
    # The same share of 1,600 patches as 46 of 400.
    c.objective.mask.keep = 184
    if arg == "smoke":
        return common.smoke(c, image_size=160, keep=12)
    if arg:
        raise ValueError(f"pretrain_640 knows the argument smoke, not {arg!r}")
    return c
