"""The released code of "Pre-training on High Definition X-ray Images", as it runs.

Command:  python -m xmae_jax.main --config=configs/pretrain_1280_released.py
          --config.data.path=SHARDS    (shards made with data_prep.build --fit=squash)
Hardware: the original script starts eight processes of two films; here, one 40 GB GPU should do.
Expected: not yet run to its end; three full-size steps at batch 2 run on a CPU.

Source: Event-AHU/Medical_Image_Analysis, folder HD_Xray_Pretrain_MAE, for arXiv 2404.17926. Kept:
one rectangle for all films, the three-convolution stem with 64-pixel patches, 46 of 400 patches
visible, decoder heads of 32, plain pixels as target, decay from 0.04 to 0.4, a constant rate
without warm-up or scaling, biases and norms frozen at their start, whole films without crops.

Declined, each with its reason: gradients are clipped by their global norm and not tensor by
tensor, since blocks are stacked and a tensor here is 24 of theirs; bfloat16 and no loss scaling
for float16; the forward pass under random masking, whose loss is overwritten there before it is
used, is left out; the parameters `decoder_image` (197), which nothing reads, do not exist;
100 epochs are counted for a million films, the size that the abstract names.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "pretrain_1280_released"
    c.image_size = 1280
    c.batch_size, c.total_steps, c.warmup_steps = 16, 6_250_000, 0
    c.objective.encoder = common.encoder("L", patch_size=64, stem="conv", base_grid=20)
    c.objective.decoder = common.decoder(512, 8, 16)
    c.objective.mask.kind, c.objective.mask.keep = "rectangle", 46
    c.objective.norm_pix_loss = False
    # 2.5e-4 whatever the batch.
    c.optim.blr, c.optim.schedule = 2.5e-4 * 256 / c.batch_size, "constant"
    c.optim.b2 = 0.999
    c.optim.weight_decay, c.optim.weight_decay_end = 0.04, 0.4
    c.optim.clip_norm = 3.0
    c.optim.freeze = (r".*/(bias|scale)",)
    if arg == "smoke":
        c = common.smoke(c, image_size=640, keep=12)
        c.warmup_steps = 0
        return c
    if arg:
        raise ValueError(f"pretrain_1280_released knows the argument smoke, not {arg!r}")
    return c
