"""Small pictures of stored films, their lungs outlined, for the report and the contact sheets."""

import base64
import hashlib
import heapq
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from xmae_jax.data.index import Entry
from xmae_jax.data.records import Record, decode, decode_image, decode_mask, open_shard

WRITING = "burnt_in_text"  # the flag of films whose text may name a patient
_COARSE = 64  # px: a letter as high as an eighth of the film is just legible
_OUTLINE = (255, 140, 0)  # orange, which no film has

Shards = Sequence[tuple[Path, int]]  # files in the order of the index, and how many records each


def read_places(shards: Shards, places: Iterable[int]) -> Iterator[tuple[int, Record]]:
    """Read records by their places in all shards taken together, in order, each once.

    One shard is open at a time, so that a million records need no more memory than ten.
    """
    wanted = deque(sorted(set(places)))
    start = 0
    for path, count in shards:
        reader = None
        while wanted and wanted[0] < start + count:
            reader = reader or open_shard(path)
            place = wanted.popleft()
            yield place, decode(reader.read([place - start])[0])
        start += count


def drawn(entries: Sequence[Entry], places: Iterable[int], *, number: int) -> list[int]:
    """Draw places at random, the same each time: those whose hashed ids come first."""
    return heapq.nsmallest(number, places, key=lambda place: _draw(entries[place].id))


def _draw(name: str) -> str:
    return hashlib.sha256(f"xmae_jax shown\0{name}".encode()).hexdigest()


def worst(entries: Sequence[Entry], places: Iterable[int], *, number: int) -> list[int]:
    """List the places of the films whose masks are of lowest quality, the worst first."""
    masked = (place for place in places if entries[place].mask_source != "none")
    return heapq.nsmallest(
        number, masked, key=lambda place: (entries[place].mask_quality, entries[place].id)
    )


def has_writing(entry: Entry) -> bool:
    """Say whether a film is flagged for text in the picture."""
    return WRITING in entry.flags.split()


def outlined(record: Record, *, side: int, coarse: bool = False) -> Image.Image:
    """Shrink a film to side x side px and draw the outline of its lungs, if it has one.

    coarse: with the detail of 64 x 64 px, so that no text in the film can be read.
    """
    film = Image.fromarray(decode_image(record["image"]))
    if coarse:
        film = film.resize((_COARSE, _COARSE), Image.Resampling.BOX)
    small = film.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    if record["lung_mask"] is None:
        return small
    mask = Image.fromarray(decode_mask(record["lung_mask"]).astype(np.uint8) * 255)
    lungs = np.asarray(mask.resize((side, side), Image.Resampling.BILINEAR)) > 127
    coloured = np.array(small.convert("RGB"))
    coloured[find_boundaries(lungs, mode="inner")] = _OUTLINE
    return Image.fromarray(coloured)


def data_uri(picture: Image.Image) -> str:
    """Write a picture as JPEG into an address that holds it."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=75, subsampling=0)  # a thin coloured line needs every pixel
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def caption(entry: Entry) -> tuple[str, str]:
    """Say of a film its view, and of its mask the quality and where it is from."""
    view = short(entry.view, length=12) or "view unknown"
    if entry.mask_source == "none":
        return view, "no contour"
    return view, f"{entry.mask_quality:.2f} {short(entry.mask_source, length=30)}"


def short(text: str, *, length: int = 40) -> str:
    """Fit a name that a table gave into a line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
