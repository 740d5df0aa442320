"""Score an encoder by its nearest training films, without training: DINO's protocol (adapted).

Command:  python -m xmae_jax.main --config=configs/evaluate_knn.py --config.data.path=SHARDS
          --config.init_from=runs/pretrain_640
Hardware: one GPU or TPU chip, or a patient CPU: each film is read and encoded once.
Expected: not yet run at full size; ":smoke" takes seconds on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Build the config; `arg` is "" or "smoke"."""
    c = common.get_config()
    c.name = "evaluate_knn"
    c.image_size = 512
    head = dict(kind="linear", pool="cls", layers=1)  # not used
    common.supervised(c, common.CHESTXRAY14, head=head, encoder=common.encoder("L", patch_size=16))
    # Rows at once; there are no steps.
    c.batch_size, c.total_steps, c.warmup_steps = 64, 1, 0
    # The k of DINO's table (Caron et al., arXiv 2104.14294).
    c.knn = ConfigDict(dict(k=(10, 20, 100, 200), features="cls"))
    if arg == "smoke":
        common.smoke(c, image_size=64)
        c.total_steps, c.eval_rows = 1, 1_000_000
        c.objective.findings = common.PHANTOMS
        return c
    if arg:
        raise ValueError(f"evaluate_knn knows the argument smoke, not {arg!r}")
    return c
