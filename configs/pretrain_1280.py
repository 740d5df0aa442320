"""Pre-train ViT-L/16 at 1280 px with contour-aware masking: the run that this code is for.

Command:  python -m xmae_jax.main --config=configs/pretrain_1280.py --config.data.path=SHARDS
          (the chain: --config.init_from=runs/pretrain_640)
Hardware: a pod; docs/performance.md has what the compiler says of TPU v4 to v6e, and
          `--task=plan --config.plan.topology=v5e:16x16` prints it. The step alone: 57 films a
          second on one NVIDIA H200, 16 at a time (`python -m benchmarks.gpu`).
Expected: not yet run at full size but for a step; ":smoke" takes about a minute on two CPU cores.

Follows Wang et al., Pre-training on High Definition X-ray Images (arXiv 2404.17926), in size,
ratios and the outline that masks. Differs from it in 16-pixel patches, so that a token stands for
the same piece of film at pre-training and after it; in each film's own contour; in a batch of
4,096; and in He et al.'s recipe (arXiv 2111.06377) where the paper's is not known.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_224


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = pretrain_224.get_config()
    c.name = "pretrain_1280"
    c.image_size = 1280
    # Without it 16 films do not fit a chip of 16 GiB, see docs/performance.md.
    c.remat = "full"
    # 25 epochs of a million films.
    c.total_steps, c.warmup_steps = 6_250, 312
    # A step is 4,096 films of 1280 px: save and look after fewer of them than the smaller runs do.
    c.checkpoint_every, c.eval_every, c.picture_every = 100, 500, 500
    # 6,400 patches; 736 is 46 of 400, the released share.
    c.objective.mask.keep = 736
    # The figure's outline is the chest's, not the two lung fields'.
    c.data.contour_region = "hull"
    if arg == "smoke":
        return common.smoke(c, image_size=256, keep=29)
    if arg:
        raise ValueError(f"pretrain_1280 knows the argument smoke, not {arg!r}")
    return c
