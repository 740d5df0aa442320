"""One input file to one record, and a list of them to one shard: what the workers run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_prep.contours import NO_CONTOUR, find_lungs
from data_prep.inputs import Row, sha256_of
from data_prep.splits import keyed_id
from xmae_jax.data import records
from xmae_jax.data.film import Film, FilmError, dicom_ids, read_film
from xmae_jax.data.lungs import hull
from xmae_jax.data.records import MASK_SIDE, Record, Report

FITS = ("pad", "squash")


@dataclass(frozen=True)
class Job:
    """One input file and what the tables say about it."""

    film: str  # path relative to the folder of films; what the id is made of
    path: Path
    mask: Path | None
    row: Row
    report: Report
    patient: str  # raw
    split: str


@dataclass(frozen=True)
class Shard:
    """One shard to be written; its bytes depend on nothing else."""

    path: Path
    jobs: tuple[Job, ...]
    size: int
    fit: str
    lungs: str
    retrocardiac: str
    key: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a shard's inputs."""

    records: int
    mask_sources: tuple[str, ...]  # of the kept films, in order
    rejected: tuple[tuple[str, str], ...]  # film, reason
    digests: dict[str, str]  # film -> digest of its files


def build_shard(shard: Shard) -> Outcome:
    """Read, convert and write the films of one shard, holding one at a time."""
    sources: list[str] = []
    rejected: list[tuple[str, str]] = []
    digests: dict[str, str] = {}

    def made() -> Iterator[Record]:
        for job in shard.jobs:
            digests[job.film] = digest_film(job)
            try:
                record = make_record(job, shard)
            except FilmError as error:
                rejected.append((job.film, error.reason))
                continue
            sources.append(record["mask_source"])
            yield record

    count = records.write_shard(shard.path, made())
    return Outcome(count, tuple(sources), tuple(rejected), digests)


def patients_of(paths: list[Path]) -> list[str]:
    """Read the raw patient ids of files from their DICOM headers; empty where there is none."""
    return [dicom_ids(path)[0] for path in paths]


def digest_film(job: Job) -> str:
    """Hash a film's file and its mask's."""
    return f"{sha256_of(job.path)} {sha256_of(job.mask) if job.mask else ''}"


def make_record(job: Job, shard: Shard) -> Record:
    """Make the record of one film; raise FilmError if it is not usable."""
    film = read_film(job.path)
    view = job.row.view or film.view
    pixels, box = square_film(film.pixels, size=shard.size, fit=shard.fit)
    contour = find_lungs(
        film.pixels,
        job.mask,
        lungs=shard.lungs,
        retrocardiac=shard.retrocardiac,
        view=view if film.chest else "OTHER",
        name=job.row.mask_source,
    )
    stored = None if contour.mask is None else square_mask(contour.mask, box=box, size=shard.size)
    if stored is None or not stored.any():  # a few pixels may vanish on the way
        stored, contour = None, NO_CONTOUR
    alone = f"film:{job.film}"  # a film of no known study is a study of its own
    return Record(
        image=records.encode_image(pixels),
        lung_mask=None if stored is None else records.encode_mask(stored),
        lung_hull=None if stored is None else records.encode_mask(hull(stored)),
        mask_source=contour.source,
        mask_quality=contour.quality,
        id=keyed_id(shard.key, "film", job.film),
        patient=keyed_id(shard.key, "patient", job.patient),
        study=keyed_id(shard.key, "study", job.row.study or film.study or alone),
        view=view,
        source=job.row.source,
        split=job.split,
        labels=job.row.labels,
        report=job.report,
        spacing=_stored_spacing(film, box),
        original_size=np.array(film.original_size, np.int32),
        valid_box=np.array(box, np.int32),
    )


def square_film(
    pixels: UInt8[np.ndarray, "h w"], *, size: int, fit: str
) -> tuple[UInt8[np.ndarray, "s s"], tuple[int, int, int, int]]:
    """Make a film square: "pad" keeps its shape, centred on black; "squash" fills the square.

    Returns the square and the box (y0, x0, y1, x1, half open) that the film takes in it. Lanczos
    keeps most detail where a film shrinks, and Pillow widens it then, so that nothing aliases.
    """
    height, width = pixels.shape
    scale = size / max(height, width)
    rows, columns = size, size
    if fit == "pad":
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - rows) // 2, (size - columns) // 2
    box = top, left, top + rows, left + columns
    resized = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    square = np.zeros((size, size), np.uint8)
    square[box[0] : box[2], box[1] : box[3]] = np.asarray(resized)
    return square, box


def square_mask(
    mask: Bool[np.ndarray, "h w"], *, box: tuple[int, int, int, int], size: int
) -> Bool[np.ndarray, "m m"]:
    """Lay a mask of any resolution over the film's box in the square; at most MASK_SIDE px."""
    top, left, bottom, right = box
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = grey.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    square = Image.new("L", (size, size))
    square.paste(resized, (left, top))
    side = min(size, MASK_SIDE)
    return np.asarray(square.resize((side, side), Image.Resampling.BOX)) >= 128


def _stored_spacing(film: Film, box: tuple[int, int, int, int]) -> np.ndarray:
    """Convert mm between the pixels of the file to mm between stored pixels."""
    height, width = film.original_size
    row = film.spacing[0] * height / (box[2] - box[0])
    column = film.spacing[1] * width / (box[3] - box[1])
    return np.array([row, column], np.float32)
