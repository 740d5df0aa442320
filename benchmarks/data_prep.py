"""How fast films become shards, beside a bare loop, and whether memory stays flat.

    python -m benchmarks.data_prep --input DIR [--films 600] [--size 1280]

DIR holds PNG and JPEG films, which are used again until there are as many as asked for. The bare
loop decodes, resizes and encodes with the same libraries in one process and does nothing else; the
build makes shards without lung contours by one worker and by two. All three take turns, three
times, and medians are compared. Memory is that of the build and all its children.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from xmae_jax.data.records import encode_image
from xmae_jax.data.transforms import square_film

TURNS = 3


def bare(paths: list[Path], size: int) -> float:
    """Return the seconds that the loop takes."""
    start = time.perf_counter()
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L"))
        encode_image(square_film(pixels, size=size, fit="pad")[0])
    return time.perf_counter() - start


def resident(root: int) -> dict[int, int]:
    """Return pid -> resident bytes of a process and all that it started."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            sizes[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    def ours(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {pid: size for pid, size in sizes.items() if ours(pid)}


def build(folder: Path, size: int, workers: int) -> tuple[float, list[int]]:
    """Run a build; return its seconds and samples of the memory of all its processes."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        arguments = ["--input", folder, "--output", f"{out}/shards", "--size", str(size)]
        arguments += ["--workers", str(workers), "--lungs", "none", "--key", f"{out}/key"]
        start, samples = time.perf_counter(), []
        with subprocess.Popen([sys.executable, "-m", "data_prep.build", *arguments],
                              stdout=subprocess.DEVNULL) as process:  # fmt: skip
            while process.poll() is None:
                samples.append(sum(resident(process.pid).values()))
                time.sleep(0.25)
        if process.returncode:
            sys.exit(f"the build ended with {process.returncode}")
        return time.perf_counter() - start, samples


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--films", type=int, default=600)
    parser.add_argument("--size", type=int, default=1280)
    options = parser.parse_args()
    found = sorted(p for p in options.input.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "films"
        folder.mkdir()
        for index in range(options.films):
            source = found[index % len(found)]
            (folder / f"{index:06d}{source.suffix}").write_bytes(source.read_bytes())
        paths = sorted(folder.iterdir())
        times: dict[str, list[float]] = {"bare loop": [], "one worker": [], "two workers": []}
        for _ in range(TURNS):
            times["bare loop"].append(bare(paths, options.size))
            seconds, samples = build(folder, options.size, 1)
            times["one worker"].append(seconds)
            times["two workers"].append(build(folder, options.size, 2)[0])
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in median.items():
        print(f"{name:12} {options.films / seconds:7.1f} films/s")
    print(f"one worker / bare loop   {median['bare loop'] / median['one worker']:.2f}")
    print(f"two workers / one        {median['one worker'] / median['two workers']:.2f}")
    quarter = len(samples) // 4
    first, last = max(samples[quarter : 2 * quarter]), max(samples[3 * quarter :])
    print(f"memory (one worker): second quarter {first >> 20} MiB, last quarter {last >> 20} MiB")


if __name__ == "__main__":
    main()
