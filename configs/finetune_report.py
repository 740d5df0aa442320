"""Fine-tune a ViT-L/16 at 512 px and a T5 decoder of base size to write the findings of a study.

Command:  python -m xmae_jax.main --config=configs/finetune_report.py --config.data.path=SHARDS
          --config.init_from=runs/pretrain_640 --config.objective.decoder_from=runs/report_text
          where the latter is a warm start on reports alone, which need no films; it is made by
          python -m xmae_jax.main --config=configs/finetune_report.py:text
          --config.data.path=REPORTS
Hardware: one host with GPUs or TPUs; set micro_batch_size to what they hold. Not yet run there.
Expected: not yet run at full size; ":smoke" takes about a minute on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common

# Raffel et al. (arXiv 1910.10683), in the sizes and the layout of v1.1.
T5_BASE = dict(width=768, depth=12, heads=12, head_width=64, hidden=2048)


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "", "text" (a warm start on reports alone) or "smoke"."""
    c = common.get_config()
    c.name = "finetune_report"
    c.image_size = 512
    decoder = dict(
        vocab=8_000,
        **T5_BASE,
        gated=True,
        tied=True,
        buckets=32,
        max_distance=128,
        norm_eps=1e-6,
        dropout=0.1,
    )
    c.objective = ConfigDict(
        dict(
            name="report",
            encoder=common.encoder("L", patch_size=16),
            head=dict(decoder=decoder, resampler=common.optional()),
            decoder_from=common.optional(),
            label_smoothing=0.1,
            # Three beams as R2Gen has (arXiv 2010.16056, section 3.3).
            generate=dict(beams=3, max_new=128, min_new=0, length_penalty=1.0, no_repeat_ngram=0),
            ema_decay=common.optional(),
        )
    )
    c.data.text = ConfigDict(
        dict(
            tokenizer=common.optional(),
            sections=("findings",),
            prefix=("indication",),
            language="auto",
            # A model that learns to write marks, or what a mark compares with, makes things up.
            marks="drop_sentence",
            length=128,
            prefix_length=32,
            views=2,
        )
    )
    # 30 epochs of MIMIC-CXR's 270,790 training studies (arXiv 2010.16056, table 1) would be 32,000.
    c.batch_size, c.total_steps, c.warmup_steps = 256, 30_000, 1_000
    c.optim.update(blr=3e-4, b2=0.999, rates=(("encoder/.*", 0.1),))
    c.eval_every, c.picture_every, c.eval_rows = 1_000, 5_000, 1_000
    if arg == "text":
        c.name = "report_text"
        c.data.text.views = 0
        # What nothing is read of neither learns nor decays; the encoder is not used at all.
        c.objective.encoder = ConfigDict(common.encoder("Ti", patch_size=16))
        c.optim.update(
            rates=(), freeze=("encoder/.*", "head/(projection|views|norm)(/.*)?", ".*/cross/.*")
        )
        return c
    if arg == "smoke":
        common.smoke(c, image_size=64)
        c.objective.head.decoder.update(
            vocab=512, width=64, depth=2, heads=4, head_width=16, hidden=128, dropout=0.0
        )
        c.objective.generate.update(beams=1, max_new=64)
        c.data.text.update(length=64, prefix_length=16)
        c.optim.rates, c.eval_rows = (), 16
        return c
    if arg:
        raise ValueError(f"finetune_report knows the arguments text and smoke, not {arg!r}")
    return c
