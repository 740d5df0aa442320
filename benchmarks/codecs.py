"""What each codec of `data_prep.build --codec` costs: bytes, loss and time to decode.

    python -m benchmarks.codecs --input DIR [--size 1280] [--films 40]

Loss is the root mean square of the difference from the film before it was encoded, in grey levels
of 255, over the part that is film. Times are medians over the films, one thread, all codecs in turn
on each film.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from xmae_jax.data.film import FilmError, read_deep, read_film
from xmae_jax.data.records import CODECS, decode_image, encode_image
from xmae_jax.data.transforms import square_film


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1280)
    parser.add_argument("--films", type=int, default=40)
    options = parser.parse_args()
    paths = sorted(path for path in options.input.rglob("*") if path.is_file())
    found: dict[str, list[tuple[float, float, float]]] = {codec: [] for codec in CODECS}
    for path in paths[:: max(len(paths) // options.films, 1)]:
        try:
            films = {np.uint8: read_film(path).pixels, np.uint16: read_deep(path)}
        except FilmError:
            continue
        for codec, dtype in CODECS.items():
            square, (y0, x0, y1, x1) = square_film(films[dtype], size=options.size, fit="pad")
            data = encode_image(square, codec)
            start = time.perf_counter()
            decoded = decode_image(data)
            seconds = time.perf_counter() - start
            aim = square / (np.iinfo(dtype).max / 255)
            loss = np.sqrt(np.mean((decoded - aim)[y0:y1, x0:x1] ** 2))
            found[codec].append((len(data) / 1e3, float(loss), seconds * 1e3))
    print("codec   kB a film  loss (grey levels)  decode (ms)")
    for codec, rows in found.items():
        size, loss, decode = np.median(rows, axis=0)
        print(f"{codec:6} {size:10.0f} {loss:19.2f} {decode:12.1f}")


if __name__ == "__main__":
    main()
