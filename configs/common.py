"""What named runs share: every key with its default, the sizes of ViT, and how to shrink a run."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Width, depth, heads. S, B, L, H: Dosovitskiy et al. (arXiv 2010.11929, table 1) and Touvron et
# al. (arXiv 2012.12877, table 1); Ti: the latter.
VIT = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}


# The 14 findings of ChestX-ray14 (Wang et al., arXiv 1705.02315).
CHESTXRAY14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
)

# Those that data_prep.phantoms plants.
PHANTOMS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Nodule",
    "Pneumothorax",
)


def optional(value=None):
    """Make a key that may hold anything or nothing, so that a flag can set it."""
    key = placeholder(object)
    if value is not None:
        key.set(value)
    return key


def encoder(variant: str, *, patch_size: int, stem: str = "linear", base_grid: int = 14):
    """Set an encoder's keys by the name of its size."""
    width, depth, heads = VIT[variant]
    return dict(
        width=width,
        depth=depth,
        heads=heads,
        patch_size=patch_size,
        stem=stem,
        base_grid=base_grid,
        # What public encoders have otherwise; docs/weights.md.
        positions="sincos",
        resample="cubic",
        registers=0,
        layer_scale=optional(),
        mlp="gelu",
        norm_eps=1e-6,
    )


def decoder(width: int, depth: int, heads: int):
    """Set a decoder's keys: self-attention over all patches, every hidden one predicted."""
    return dict(kind="self", predict_share=1.0, width=width, depth=depth, heads=heads)


def get_config() -> ConfigDict:
    """List every key that all runs have; the recipe is that of He et al. (arXiv 2111.06377)."""
    return ConfigDict(
        dict(
            seed=0,
            micro_batch_size=optional(),
            log_every=50,
            checkpoint_every=1_000,
            checkpoint_keep=2,
            eval_every=5_000,
            eval_rows=256,
            picture_every=5_000,
            compute_dtype="bfloat16",
            attention="auto",
            remat="none",
            init_from=optional(),
            knn=optional(),
            data=dict(
                path=optional(),
                split="train",
                eval_split=optional("val"),
                mixture=optional(),
                # Which training films are used, and how often: docs/protocols.md.
                label_fraction=1.0,
                shots=optional(),
                balance=optional(),
                leave_out_source=optional(),
                contour_region="hull",
                crop_scale=optional(),
                augment=optional(),
                threads=16,
                workers=0,
                # A damaged record ends the run ("fail"), or is left out ("skip") as long as the
                # rows so lost stay below this share.
                bad_records="fail",
                max_bad_share=1e-3,
                # A patient, a film or a near copy of one in the training split and another, or
                # sets whose patients cannot be compared: exit 65, or "allow" and say so in results.
                leaks="refuse",
                text=optional(),
            ),
            # Deviations above the mean of the last 128 steps at which a step is left out (OLMo-core
            # and MaxText: 6); None never does. Seconds without a sign of life that end a run:
            # longer than any compilation. Seconds of silence after which the other processes of a
            # run take one for dead, and end (JAX: 100).
            guard=dict(spike_sigma=optional(6.0), watchdog_seconds=1800.0, heartbeat_seconds=60.0),
            # "7:nan", "7-16:inf" or "200:spike": what the loss becomes there; to try the guards.
            debug=dict(poison_step=optional()),
            mesh=dict(data=-1, fsdp=1, tensor=1),
            plan=dict(topology=optional(), search=False, price=optional()),
            export=dict(format="safetensors", public=False, name=optional()),
            predict=dict(output=optional(), heat=optional(), maps=optional(3)),
            optim=dict(
                blr=1.5e-4,
                min_lr=0.0,
                schedule="cosine",
                b1=0.9,
                b2=0.95,
                weight_decay=0.05,
                weight_decay_end=0.05,
                clip_norm=optional(1.0),
                layer_decay=1.0,
                freeze=(),
                grid=optional(),
                rates=(),
            ),
            probe=optional(),
            cache=dict(dir=optional(), max_gb=64.0),
            objective=dict(
                name="mae",
                # Inside 0.95, outside 0.85: defaults of the released code of Wang et al. (arXiv
                # 2404.17926, Event-AHU/Medical_Image_Analysis, pretrain/main.py).
                mask=dict(kind="contour", ratio_inside=0.95, ratio_outside=0.85),
                norm_pix_loss=True,
                # One grey level in [-1, 1] pixels: black film has no texture to predict.
                norm_pix_floor=2 / 255,
                ema_decay=optional(),
            ),
        )
    )


def supervised(
    c: ConfigDict, findings: tuple[str, ...], *, head: dict, encoder: dict
) -> ConfigDict:
    """Make it a run that learns findings; what the objective needs beside them stays to be set."""
    c.objective = ConfigDict(
        dict(
            name="supervised",
            encoder=encoder,
            head=head,
            findings=findings,
            criterion=dict(kind="bce"),
            uncertain="ignore",
            drop_path=0.0,
            ema_decay=optional(),
        )
    )
    # A split is scored whole.
    c.eval_rows = 1_000_000
    return c


# CheXFound's 13 rates, not scaled by the batch (Yang et al., arXiv 2502.05142; RPIDIAL/CheXFound,
# eval/classification/linear_glori.py).
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def probe(c: ConfigDict) -> ConfigDict:
    """Freeze the encoder, and try CheXFound's rates side by side: AdamW, no warm-up, 100 epochs."""
    # 100 epochs of the 78,468 training films of ChestX-ray14.
    c.batch_size, c.total_steps, c.warmup_steps = 256, 30_650, 0
    c.probe = ConfigDict(dict(grid=dict(blr=RATES, weight_decay=(1e-4,)), metric="auroc"))
    c.optim.update(b2=0.999, freeze=("encoder/.*", "head/queries"))
    c.optim.clip_norm = optional()
    return c


def glori() -> dict:
    """Set GLoRI's head, with its CLS skip (`heads/query.py`)."""
    return dict(
        kind="query",
        queries="fixed",
        text=optional(),
        groups=optional(),
        layers=4,
        cls_skip=True,
        width=768,
        heads=8,
        hidden=2048,
        dropout=0.1,
    )


def ml_decoder() -> dict:
    """Set ML-Decoder's head: 100 queries at most, patches of the last block (`heads/query.py`)."""
    return glori() | dict(groups=optional(100), layers=1, cls_skip=False)


def smoke(c: ConfigDict, *, image_size: int, keep: int | None = None) -> ConfigDict:
    """Shrink a run to a minute on a laptop: a small model, small films, 50 steps, float32."""
    c.name += "_smoke"
    c.image_size, c.compute_dtype, c.remat = image_size, "float32", "none"
    c.total_steps, c.warmup_steps, c.batch_size = 50, 5, 8
    c.log_every, c.checkpoint_every, c.eval_every, c.picture_every = 1, 10, 50, 50
    c.data.threads = 2
    c.objective.encoder.update(width=96, depth=2, heads=3)
    if keep is not None:
        c.eval_rows = 16
        c.objective.decoder.update(width=64, depth=2, heads=2)
        c.objective.mask.keep = keep
    if c.get("probe") is not None:
        c.probe.grid.blr = (0.03, 0.3, 3.0)
        c.objective.head.layers = min(c.objective.head.layers, 2)
        if c.objective.head.kind == "query":
            c.objective.head.update(width=48, heads=2, hidden=64)
    # The peak rate of a batch of 8 would be tiny under the linear rule.
    c.optim.blr = 1e-3 * 256 / 8
    return c
