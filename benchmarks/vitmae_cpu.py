"""Time a training step on the CPU, beside Hugging Face's ViTMAE in PyTorch.

Both train the masked auto-encoder of He et al. (arXiv 2111.06377) from scratch on the same random
films: a ViT-S/16 encoder and the paper's decoder, one channel, 256 px, batch 4, three quarters of
the patches hidden, the target normalised per patch, float32, AdamW in the step. Ours is the
`train_step` that a run compiles, with its guard. Blocks of steps alternate in one process, so that
what else the machine does falls on both.

Command: python -m benchmarks.vitmae_cpu   (needs the extra `bench`; without it, ours alone)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from configs import pretrain_224
from xmae_jax import rng, sharding
from xmae_jax.config import objective_of, resolve
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.program import lay_out

# (width, depth, heads) of encoder and decoder, pixels, rows.
FULL = ((384, 12, 6), (512, 8, 16), 256, 4)
SMOKE = ((32, 2, 2), (32, 1, 2), 64, 2)
PATCH = 16


def films(rows: int, size: int) -> np.ndarray:
    """Draw random pixels, which take as long as films, uint8 [b h w 1]."""
    return np.random.default_rng(0).integers(0, 256, (rows, size, size, 1), dtype=np.uint8)


def ours(encoder: tuple, decoder: tuple, size: int, rows: int) -> Callable[[], float]:
    """Compile our step; return a function that takes one and gives its loss."""
    n = (size // PATCH) ** 2
    c = pretrain_224.get_config()
    c.image_size, c.batch_size, c.compute_dtype = size, rows, "float32"
    names = ("width", "depth", "heads")
    c.objective.encoder.update(dict(zip(names, encoder, strict=True)))
    c.objective.encoder.base_grid = size // PATCH
    c.objective.decoder.update(dict(zip(names, decoder, strict=True)))
    c.objective.mask.update(kind="random", keep=n // 4)
    c.objective.norm_pix_floor, c.optim.clip_norm = 0.0, None  # which the other has not
    config = resolve(c)
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    program = lay_out(config, objective_of(config, OBJECTIVES), mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)(rng.key(0, "init"))
    batch = {
        "image": films(rows, size),
        "lung": np.zeros((rows, size // PATCH * 8, size // PATCH * 8), np.uint8),
        "box": np.tile(np.array([0, 0, 1, 1], np.float32), (rows, 1)),
        "mask": np.ones(rows, bool),
        "id": np.zeros((rows, 2), np.int32),
    }

    def step() -> float:
        nonlocal state
        state, log = program.step(state, batch)
        return float(log["training_loss"])

    return step


def theirs(encoder: tuple, decoder: tuple, size: int, rows: int) -> Callable[[], float]:
    """Build Hugging Face's model and PyTorch's AdamW; return the like of `ours`."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=encoder[0],
        num_hidden_layers=encoder[1],
        num_attention_heads=encoder[2],
        intermediate_size=4 * encoder[0],
        decoder_hidden_size=decoder[0],
        decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2],
        decoder_intermediate_size=4 * decoder[0],
        image_size=size,
        patch_size=PATCH,
        num_channels=1,
        mask_ratio=0.75,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    model = ViTMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    pixels = torch.from_numpy(films(rows, size)).permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def step() -> float:
        loss = model(pixel_values=pixels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def alternate(steps: dict[str, Callable[[], float]], *, blocks: int, length: int) -> dict:
    """Run blocks of `length` steps of each in turn; return (wall, CPU) seconds of every step."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for block in range(blocks):
        for name, step in steps.items() if block % 2 == 0 else reversed(steps.items()):
            step()  # the first after the other's turn finds cold caches
            for _ in range(length):
                start = time.perf_counter(), time.process_time()
                step()
                end = time.perf_counter(), time.process_time()
                times[name].append((end[0] - start[0], end[1] - start[1]))
    return times


def main(argv: list[str] | None = None) -> int:
    """Measure, and print one line a competitor and one of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=6, help="turns of each (6)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn (4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--smoke", action="store_true", help="a toy model, in seconds")
    options = parser.parse_args(argv)
    sizes = SMOKE if options.smoke else FULL
    blocks, length = (2, 2) if options.smoke else (options.blocks, options.steps)

    steps = {"ours": ours(*sizes)}
    try:
        import torch

        torch.set_num_threads(options.threads)
        steps["theirs"] = theirs(*sizes)
    except ImportError as error:
        print(f"skipped: ViTMAE ({error}; pip install -e '.[bench]')")
    for name, step in steps.items():
        losses = [step() for _ in range(3)]  # compiles, and fills allocators
        print(f"{name}: first losses {', '.join(f'{x:.4f}' for x in losses)}", flush=True)

    times = alternate(steps, blocks=blocks, length=length)
    result = {}
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=True)
        result[name] = {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}
        print(
            f"{name}: {result[name]['wall']:.3f} s a step (median of {len(wall)}; {min(wall):.3f}"
            f" to {max(wall):.3f}), {result[name]['cpu']:.3f} s of CPU"
        )
    if "theirs" in result:
        for kind in ("wall", "cpu"):
            result[f"ratio_{kind}"] = result["ours"][kind] / result["theirs"][kind]
        print(f"ours / theirs: {result['ratio_wall']:.3f}, of CPU {result['ratio_cpu']:.3f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
