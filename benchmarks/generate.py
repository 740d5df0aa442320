"""Time beam search on the CPU, beside `generate` of Hugging Face's transformers in PyTorch.

Both write texts of equal length, by the same random weights, from the same random encoder states:
64 studies of 400 patch tokens, 60 new tokens, three beams, a decoder of the size of T5-small v1.1
(width 512, 6 layers, 8 heads, 1,024 hidden units, 32,128 tokens), float32, on two threads. Keys
and values of the memory are made within the time of both. Turns alternate in one process, so that
what else the machine does falls on both; seconds of CPU with `--threads 1` hold on a busy machine.
Random weights write near ties, so the share of equal tokens is printed, not asked for.

Command: python -m benchmarks.generate   (needs the extra `bench`; without it, ours alone)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmae_jax.digest import nested
from xmae_jax.models.convert_t5 import read_t5
from xmae_jax.models.generate import GenerateConfig, generate
from xmae_jax.models.layers import Compute
from xmae_jax.models.t5 import T5Config, T5Decoder

FULL = T5Config(
    vocab=32128, width=512, depth=6, heads=8, head_width=64, hidden=1024, gated=True, tied=False
)
SMOKE = T5Config(
    vocab=100, width=32, depth=2, heads=2, head_width=16, hidden=64, gated=True, tied=False
)


def ours(model: T5Decoder, states: np.ndarray, config: GenerateConfig) -> Callable[[], np.ndarray]:
    """Return a function that writes a text for each row of `states`, and gives the tokens."""
    graph, params = nnx.split(model)

    @jax.jit
    def write(params: nnx.State, states: jax.Array) -> jax.Array:
        decoder = nnx.merge(graph, params)
        return generate(decoder, decoder.memory(states), config=config).tokens

    given = jnp.asarray(states)
    return lambda: np.asarray(write(params, given))


def theirs(
    c: T5Config, folder: Path, states: np.ndarray, config: GenerateConfig, *, threads: int
) -> Callable[[], np.ndarray]:
    """Make and save Hugging Face's model; return the like of `ours`."""
    import torch
    from transformers import T5Config as Config
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        Config(
            vocab_size=c.vocab,
            d_model=c.width,
            d_kv=c.head_width,
            d_ff=c.hidden,
            num_layers=c.depth,  # of the encoder too, which is not run
            num_heads=c.heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=config.start,
        )
    ).eval()
    model.save_pretrained(folder)
    encoded = torch.from_numpy(states)

    def write() -> np.ndarray:
        with torch.inference_mode():
            tokens = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                num_beams=config.beams,
                max_new_tokens=config.max_new,
                min_new_tokens=config.min_new,
                do_sample=False,
            )
        return tokens[:, 1:].numpy()

    return write


def main(argv: list[str] | None = None) -> int:
    """Measure, and print one line a competitor and one of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="of each (3)")
    parser.add_argument("--threads", type=int, default=2, help="and cores (2)")
    parser.add_argument("--smoke", action="store_true", help="a toy model, in seconds")
    options = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):  # before JAX, at its first use, counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    sizes, m, rows = (SMOKE, 10, 4) if options.smoke else (FULL, 400, 64)
    length = 8 if options.smoke else 60
    config = GenerateConfig(beams=3, max_new=length, min_new=length)
    states = np.random.default_rng(0).normal(size=(rows, m, sizes.width)).astype(np.float32)
    compute = Compute(jnp.dtype("float32"), "plain", "none")
    model = T5Decoder(sizes, compute=compute, rngs=nnx.Rngs(0))
    writers = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            writers["theirs"] = theirs(sizes, Path(folder), states, config, threads=options.threads)
            model = nnx.merge(nnx.graphdef(model), nested(read_t5(Path(folder)).params))
        except ImportError as error:
            print(f"skipped: transformers ({error}; pip install -e '.[bench]')")
    writers["ours"] = ours(model, states, config)

    texts, times = {}, {name: [] for name in writers}
    for name, write in writers.items():
        start = time.perf_counter()
        texts[name] = write()
        print(f"{name}: the first time {time.perf_counter() - start:.2f} s", flush=True)
    for turn in range(options.turns):
        for name, write in writers.items() if turn % 2 == 0 else reversed(writers.items()):
            start = time.perf_counter(), time.process_time()
            write()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    result = {}
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=True)
        result[name] = {"wall": statistics.median(wall), "cpu": statistics.median(cpu)}
        print(
            f"{name}: {result[name]['wall']:.3f} s (median of {len(wall)}; {min(wall):.3f} to"
            f" {max(wall):.3f}), {result[name]['cpu']:.3f} s of CPU, for {texts[name].shape[0]}"
            f" texts of {texts[name].shape[1]} tokens"
        )
    if "theirs" in result:
        for kind in ("wall", "cpu"):
            result[f"ratio_{kind}"] = result["theirs"][kind] / result["ours"][kind]
        result["equal_tokens"] = float((texts["ours"] == texts["theirs"]).mean())
        print(
            f"theirs / ours: {result['ratio_wall']:.2f}, of CPU {result['ratio_cpu']:.2f};"
            f" {result['equal_tokens']:.1%} of the tokens are equal"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
