"""Read hostile or mutated files in a process of their own, and say how each ended.

    python -m tests.data.fuzz hostile FOLDER
    python -m tests.data.fuzz mutate FOLDER COUNT SEED
    python -m tests.data.fuzz read FILE

Prints a line of JSON a file, and in the end the peak of resident memory.
"""

import json
import struct
import sys
import time
from pathlib import Path

import numpy as np

from tests.data import hostile
from xmae_jax.data.film import FilmError, dicom_ids, read_film, read_mask, sniff

_SEEDS = (*hostile.SAME, "jpeg12", "png", "png16", "jpeg", "tiff", "jpeg.dcm", "scans.jpg")
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def main(mode: str, folder: str, count: str = "0", seed: str = "0") -> None:
    """Run one mode."""
    if mode == "hostile":
        for name in hostile.make(Path(folder)):
            _tell(name, Path(folder) / name)
    elif mode == "read":
        _tell("", Path(folder))
    else:
        _mutate(Path(folder), int(count), int(seed))
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"peak_kib": int(status.split("VmHWM:")[1].split()[0])}), flush=True)


def _mutate(folder: Path, count: int, seed: int) -> None:
    hostile.make(folder)
    seeds = {name: (folder / name).read_bytes() for name in _SEEDS}
    rng = np.random.default_rng(seed)
    for number in range(count):
        name = sorted(seeds)[number % len(seeds)]
        path = folder / "mutant"
        path.write_bytes(mutated(seeds[name], rng))
        _tell(f"{name} {number}", path)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, repeat or zero some of a file's bytes, mostly near its beginning."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        span = len(out) if rng.random() < 0.4 else min(len(out), 1200)
        at = int(rng.integers(0, max(span - 8, 1)))
        kind = rng.integers(6)
        if kind == 0:
            out[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            size = "BHI"[rng.integers(3)]
            order = "<>"[rng.integers(2)]
            value = _EXTREMES[rng.integers(len(_EXTREMES))] & (256 ** struct.calcsize(size) - 1)
            out[at : at + struct.calcsize(size)] = struct.pack(order + size, value)
        elif kind == 2 and len(out) > 200:
            del out[int(rng.integers(100, len(out))) :]
        elif kind == 3:
            out[at:at] = out[at : at + int(rng.integers(1, 400))]
        elif kind == 4:
            out[at : at + 64] = bytes(len(out[at : at + 64]))
        else:
            out[at : at + 4] = rng.bytes(4)
    return bytes(out)


def _tell(name: str, path: Path) -> None:
    start, reason = time.perf_counter(), None
    try:
        read_film(path)
    except FilmError as error:
        reason = error.reason
    for other in (sniff, read_mask, dicom_ids):
        try:
            other(path)
        except FilmError:
            pass
    line = {"name": name, "reason": reason, "seconds": time.perf_counter() - start}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
