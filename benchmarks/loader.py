"""Time the loader: beside one core's bare decoding, PyTorch's DataLoader, and a training step.

Films per second of
  decode     one thread decodes JPEG bytes that are in memory, and does nothing else
  pillow     the same by Pillow, as PyTorch's users do
  threads    our loader, two threads, uint8 batches           as a share of 2 x decode
  workers    our loader, two processes, uint8 batches         as a share of 2 x decode
  torch      DataLoader, two workers: open, decode (Pillow), uint8          ours / torch
  crops      our loader with random crops, two threads, normalised on the device
  mae        DataLoader as MAE's users write it, two workers: RandomResizedCrop (bicubic), ToTensor,
             Normalize, float32                                             crops / mae
and then, for one config, the loader alone, the step alone and both, with who waits for whom.

Each figure is the median of interleaved runs. PyTorch's parts are left out where it is not
installed (pip install -e '.[bench]'). Without --data, phantoms are drawn, a minute for 48.

Command: python -m benchmarks.loader --data SHARDS
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import flags
from PIL import Image

from xmae_jax import config as config_lib
from xmae_jax import rng, sharding
from xmae_jax.data.batch import LoadStep, loader
from xmae_jax.data.plan import Plan
from xmae_jax.data.records import Records, decode_image
from xmae_jax.data.views import FilmView
from xmae_jax.objectives import OBJECTIVES
from xmae_jax.objectives.mae import normalise
from xmae_jax.program import lay_out
from xmae_jax.tasks.film import view_of

ROOT = Path(__file__).parents[1]
CROP = (0.2, 1.0)
"""Share of a film that a crop covers, as in MAE's pre-training (main_pretrain.py)."""


def make_shards(folder: Path, *, count: int, size: int) -> Path:
    """Draw phantoms and put them into shards, by the commands that users run."""
    from data_prep import build, phantoms

    films, shards = str(folder / "films"), folder / "shards"
    made = phantoms.main(["--output", films, "--count", str(count), "--size", str(size)])
    key = ["--key", str(folder / "key"), "--lungs", "given"]
    made += build.main(["--input", films, "--output", str(shards), "--size", str(size), *key])
    if made:
        raise SystemExit("no shards were made")
    return shards


def load_step(records: Records, view: FilmView, batch: int) -> LoadStep:
    """Plan batches over all records, as a run does."""
    plan = Plan(0, (len(records),), (batch,), (records.digest,))
    return LoadStep(plan.ids, [records], view, seed=0, rows=slice(None), skip=False)


def rate(batches: Iterator, *, batch: int, warm: int, steps: int) -> float:
    """Count films per second over `steps` batches after `warm`, with read-ahead going on."""
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return batch * steps / (time.perf_counter() - start)


@dataclasses.dataclass
class Bench:
    """What every measurement shares."""

    records: Records
    size: int
    batch: int
    steps: int
    folder: Path
    """Where the films lie as JPEG files, for PyTorch."""

    def view(self, crop_scale: tuple[float, float] | None) -> FilmView:
        """Make the view of pre-training."""
        side = max(1, self.size // 16)
        return FilmView(self.size, (side, side), "hull", crop_scale)

    def decode(self, how: Callable[[bytes], np.ndarray]) -> float:
        """Decode pictures in memory on this thread."""
        count = min(len(self.records), self.batch * self.steps)
        pictures = [self.records[i]["image"] for i in range(count)]
        start = time.perf_counter()
        for picture in pictures:
            how(picture)
        return count / (time.perf_counter() - start)

    def ours(self, *, threads: int, workers: int, crop: bool) -> float:
        """Load batches; with `crop` cut and normalise them too."""
        load = load_step(self.records, self.view(CROP if crop else None), self.batch)
        warm = 2 * max(threads, workers) + 2
        batches = loader(
            load, first=0, last=warm + self.steps + 50, workers=workers, threads=threads
        )
        with contextlib.closing(batches):
            found = iter(batches)
            if crop:
                on_device = jax.jit(normalise)
                found = (jax.block_until_ready(on_device(b["image"])) for b in batches)
            return rate(found, batch=self.batch, warm=warm, steps=self.steps)

    def torch(self, *, mae: bool) -> float:
        """Load the same films from JPEG files by a DataLoader with two workers."""
        from torch.utils.data import DataLoader

        warm = 6
        films = TorchFilms(sorted(self.folder.glob("*.jpg")), self.size, mae=mae)
        films.length = self.batch * (warm + self.steps + 6)
        batches = iter(DataLoader(films, batch_size=self.batch, num_workers=2, shuffle=True))
        return rate(batches, batch=self.batch, warm=warm, steps=self.steps)


class TorchFilms:
    """Films as a PyTorch data set; `mae` is the transform of MAE's main_pretrain.py, in grey.

    Crop, ToTensor and Normalize are written as torchvision does them on Pillow images.
    """

    def __init__(self, paths: list[Path], size: int, *, mae: bool):
        self.paths, self.size, self.mae, self.length = paths, size, mae, len(paths)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        import torch

        with Image.open(self.paths[index % len(self.paths)]) as picture:
            if not self.mae:
                return torch.from_numpy(np.array(picture))[None]
            x0, y0, w, h = self._crop(*picture.size)
            picture = picture.crop((x0, y0, x0 + w, y0 + h))
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))[:, :, None]
        pixels = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.clone().sub_(0.5).div_(0.5)

    @staticmethod
    def _crop(width: int, height: int) -> tuple[int, int, int, int]:
        import torch

        for _ in range(10):
            area = height * width * float(torch.empty(1).uniform_(*CROP))
            ratio = math.exp(float(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                x0 = int(torch.randint(0, width - w + 1, (1,)))
                return x0, int(torch.randint(0, height - h + 1, (1,))), w, h
        return 0, 0, width, height


def write_jpegs(records: Records, folder: Path) -> None:
    """Write every film as a JPEG file with the bytes of its record, if those are JPEG."""
    for i, record in enumerate(records):
        data = record["image"]
        if not data.startswith(b"\xff\xd8"):
            out = io.BytesIO()
            Image.open(io.BytesIO(data)).save(out, "JPEG", quality=95)
            data = out.getvalue()
        (folder / f"{i:06d}.jpg").write_bytes(data)


def interleave(parts: dict[str, Callable[[], float]], *, runs: int) -> dict[str, float]:
    """Run every part in turn, `runs` times; return medians."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for run in range(runs):
        for name, part in parts.items() if run % 2 == 0 else reversed(parts.items()):
            found[name].append(part())
    for name, rates in found.items():
        low, high = min(rates), max(rates)
        print(f"{name:8} {statistics.median(rates):8.1f} films/s   ({low:.1f} to {high:.1f})")
    return {name: statistics.median(rates) for name, rates in found.items()}


def waits(name: str, records: Records, *, steps: int, threads: int) -> dict[str, float]:
    """Time loader alone, step alone and both for a config; say who waits for whom."""
    path, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = config_lib.resolve(module.get_config(argument))
    objective = config_lib.objective_of(config, OBJECTIVES)
    view = view_of(config, objective, train=True)
    batch, warm = config.batch_size, 2 * threads + 2
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    program = lay_out(config, objective, mesh)
    state = jax.jit(program.init, out_shardings=program.shardings)(rng.key(0, "init"))

    def batches():
        load = load_step(records, view, batch)
        return loader(load, first=0, last=warm + steps + 50, workers=0, threads=threads)

    with contextlib.closing(batches()) as source:
        alone = batch / rate(source, batch=batch, warm=warm, steps=steps)
        host = next(source)
    state, _ = program.step(state, host)  # compiles

    def run(fetch: Callable[[], dict]) -> tuple[float, float]:
        """Return seconds of a step, and how much of that went into waiting for data."""
        nonlocal state
        waited, begin = 0.0, time.perf_counter()
        for _ in range(steps):
            start = time.perf_counter()
            rows = fetch()
            waited += time.perf_counter() - start
            state, log = program.step(state, rows)
            jax.block_until_ready(log["training_loss"])
        return (time.perf_counter() - begin) / steps, waited / steps

    step, _ = run(lambda: host)
    with contextlib.closing(batches()) as source:
        for _ in range(warm):
            next(source)
        both, waited = run(lambda: next(source))
    who = "the step waits for data" if waited > 0.05 * both else "the loader keeps ahead"
    print(
        f"{name}, batch {batch} at {config.image_size} px: loader alone {1e3 * alone:.1f} ms,"
        f" step alone {1e3 * step:.1f} ms, both {1e3 * both:.1f} ms, of which {1e3 * waited:.1f} ms"
        f" ({100 * waited / both:.0f} %) wait for data: {who}"
    )
    return {"loader": alone, "step": step, "both": both, "data_wait": waited}


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a line a figure and one of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a directory of shards; phantoms without it")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch", type=int, default=8, help="films of a batch (8)")
    parser.add_argument("--steps", type=int, default=12, help="timed batches of a run (12)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs (5)")
    parser.add_argument(
        "--config", default="configs/pretrain_1280.py:smoke", help="whose step to time"
    )
    parser.add_argument("--smoke", action="store_true", help="small phantoms, in seconds")
    options = parser.parse_args(argv)
    flags.FLAGS.mark_as_parsed()  # Grain's processes read its flags
    # DataLoader forks, and JAX warns of it; its children use no JAX.
    warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)
    if options.smoke:
        print("smoke: it runs; the figures mean nothing")
        options.batch, options.steps, options.runs = 2, 2, 1

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count, size = (8, 96) if options.smoke else (48, 1280)
        data = options.data or make_shards(folder, count=count, size=size)
        records = Records(data, options.split)
        (folder / "jpeg").mkdir()
        bench = Bench(records, records.size, options.batch, options.steps, folder / "jpeg")
        parts = {
            "decode": partial(bench.decode, decode_image),
            "pillow": partial(bench.decode, lambda data: np.asarray(Image.open(io.BytesIO(data)))),
            "threads": partial(bench.ours, threads=2, workers=0, crop=False),
            "workers": partial(bench.ours, threads=0, workers=2, crop=False),
            "crops": partial(bench.ours, threads=2, workers=0, crop=True),
        }
        if importlib.util.find_spec("torch"):
            write_jpegs(records, folder / "jpeg")
            parts |= {
                "torch": partial(bench.torch, mae=False),
                "mae": partial(bench.torch, mae=True),
            }
        else:
            print("skipped: PyTorch's loaders (torch is not installed; pip install -e '.[bench]')")
        found = interleave(parts, runs=options.runs)
        ratios = {
            f"{ours} / 2 {bare}": found[ours] / found[bare] / 2
            for ours in ("threads", "workers")
            for bare in ("decode", "pillow")
        }
        if "torch" in found:
            ratios["ours / torch"] = max(found["threads"], found["workers"]) / found["torch"]
            ratios["crops / mae"] = found["crops"] / found["mae"]
        for name, ratio in ratios.items():
            print(f"{name}: {ratio:.2f}")
        result = {"films_per_second": found, "ratios": ratios}
        result["waits"] = waits(options.config, records, steps=options.steps, threads=2)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
