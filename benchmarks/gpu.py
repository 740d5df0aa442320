"""Time one GPU: a matmul, attention, the step of pretrain_1280, PyTorch's ViTMAE beside it.

Command:  python -m benchmarks.gpu           (an NVIDIA card of 80 GB; extras `cuda`, `bench`)
          python -m benchmarks.gpu --smoke   (any machine, a toy model; as where no card is found)

Prints versions and the card, then a line for each measurement: medians on synthetic films that lie
on the device. MFU counts three forward passes of the model, whatever is computed again. The step is
that of a run, with its optimizer and guards, for the config's 4 decoder heads and the paper's 16.
PyTorch's ViTMAE (transformers, sdpa, bfloat16 autocast, fused AdamW) has the same sizes; it needs
the extra `bench`, and is left out with a line that says so where that is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants some too

import jax
import jax.numpy as jnp

from configs import pretrain_1280
from xmae_jax import flops, sharding
from xmae_jax.attention import attend
from xmae_jax.chips import chip_of
from xmae_jax.config import Config, resolve
from xmae_jax.tasks import plan
from xmae_jax.tasks.film import film_flops
from xmae_jax.tasks.point import Place, compiled_point


def timed(fn: Callable[[], Any], *, steps: int) -> float:
    """Return the median seconds of `fn`, which waits for its device, after two calls for warmth."""
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def matmul(side: int, steps: int) -> None:
    """Time a square product."""
    x = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: product(x, x).block_until_ready(), steps=steps)
    print(f"matmul {side} bfloat16: {2 * side**3 / seconds / 1e12:.3g} TFLOP/s", flush=True)


def attention(rows: int, length: int, width: int, steps: int) -> None:
    """Time attention of one model width, forward and backward, by width of its heads."""
    for head in (32, 64, 128):
        q = jnp.ones((rows, length, width // head, head), jnp.bfloat16)
        loss = jax.jit(
            jax.grad(lambda q: attend(q, q, q, backend="auto").astype(jnp.float32).sum())
        )
        seconds = timed(lambda q=q, loss=loss: loss(q).block_until_ready(), steps=steps)
        # Two products forward and five backward, of which one is computed again.
        rate = 7 * 2 * rows * length**2 * width / seconds / 1e12
        told = f"attention, {length} tokens, heads of {head}"
        print(f"{told}: {seconds * 1e3:.2f} ms, {rate:.3g} TFLOP/s", flush=True)


def step(config: Config, steps: int) -> float:
    """Time our step on one device; return images a second."""
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    place = Place("here", None, None, compiles=True, here=True)
    point = compiled_point(config, mesh, place, config.batch_size, steps=steps)
    assert point.step_seconds is not None
    speed = config.batch_size / point.step_seconds
    total = flops.FORWARD_AND_BACKWARD * sum(film_flops(config).values())
    chip = chip_of(jax.devices()[0].device_kind)
    mfu = f", MFU {speed * total / chip.flops:.3f}" if chip else ""
    heads = config.objective["decoder"]["heads"]
    print(
        f"ours, {heads} decoder heads, batch {config.batch_size}, remat {config.remat}:"
        f" {speed:.2f} images/s{mfu}, {point.peak / plan.GIB:.1f} GiB (compiled)",
        flush=True,
    )
    gc.collect()
    return speed


def theirs(config: Config, steps: int) -> float | None:
    """Time Hugging Face's ViTMAE of the same sizes; None if it is not installed."""
    try:
        import torch
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        print(f"skipped: PyTorch's ViTMAE ({error}; pip install -e '.[bench]')")
        return None
    encoder, decoder = config.objective["encoder"], config.objective["decoder"]
    patches = (config.image_size // encoder["patch_size"]) ** 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=encoder["width"],
            num_hidden_layers=encoder["depth"],
            num_attention_heads=encoder["heads"],
            intermediate_size=4 * encoder["width"],
            decoder_hidden_size=decoder["width"],
            decoder_num_hidden_layers=decoder["depth"],
            decoder_num_attention_heads=decoder["heads"],
            decoder_intermediate_size=4 * decoder["width"],
            image_size=config.image_size,
            patch_size=encoder["patch_size"],
            num_channels=1,
            mask_ratio=1 - config.objective["mask"]["keep"] / patches,
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    side = config.image_size
    films = torch.rand(config.batch_size, 1, side, side, device=device)

    def one() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(pixel_values=films).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    speed = config.batch_size / timed(one, steps=steps)
    peak = torch.cuda.max_memory_allocated() / plan.GIB if device == "cuda" else float("nan")
    print(f"PyTorch's ViTMAE: {speed:.2f} images/s, peak {peak:.1f} GiB", flush=True)
    return speed


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="films a step (16)")
    parser.add_argument("--remat", default="full", choices=plan.REMAT)
    parser.add_argument("--steps", type=int, default=10, help="timed steps (10)")
    parser.add_argument("--smoke", action="store_true", help="a toy model, in seconds")
    options = parser.parse_args(argv)

    if jax.default_backend() != "gpu" and not options.smoke:
        print("no NVIDIA card here: at smoke size, where speeds mean nothing")
        options.smoke = True
    names = ("jax", "jaxlib", "flax", "torch", "transformers")
    known = {name: _version(name) for name in names}
    told = [f"{name} {version}" for name, version in known.items()]
    print(", ".join([*told, f"Python {platform.python_version()}"]))
    print(f"card: {jax.devices()[0].device_kind}", flush=True)
    c = pretrain_1280.get_config("smoke" if options.smoke else "")
    c.batch_size, c.remat = (2 if options.smoke else options.batch), options.remat
    config, steps = resolve(c), (2 if options.smoke else options.steps)

    matmul(512 if options.smoke else 8192, steps)
    attention(2, 300 if options.smoke else 6401, 128 if options.smoke else 512, steps)
    ours = step(config, steps)
    part = dict(config.objective["decoder"])
    part["heads"] = 4 if options.smoke else 16
    objective = {**config.objective, "decoder": part}
    step(dataclasses.replace(config, objective=objective), steps)
    other = theirs(config, steps)
    if other:
        print(f"ours / PyTorch's ViTMAE, images a second: {ours / other:.2f}")
    return 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
