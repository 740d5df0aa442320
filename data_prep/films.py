"""One input file to one record: what runs in the processes that read files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from data_prep.contours import NO_CONTOUR, find_lungs
from data_prep.given import Mask, given_name
from data_prep.inputs import Row
from data_prep.splits import keyed_id
from xmae_jax.data import records
from xmae_jax.data.film import Film, FilmError, dicom_ids, read_deep, read_film
from xmae_jax.data.index import LONG, Entry, label_text, perceptual_hash, pixel_digest
from xmae_jax.data.lungs import hull
from xmae_jax.data.people import stored_age
from xmae_jax.data.records import MASK_SIDE, Record, Report
from xmae_jax.data.text import normalise, words
from xmae_jax.data.transforms import square_film

FRAMES = ("refuse", "first")


@dataclass(frozen=True)
class Job:
    """One input file and what the tables say about it."""

    film: str  # path relative to the folder of films; what the id is made of
    path: Path
    mask: Mask | None
    row: Row
    report: Report
    patient: str  # raw
    split: str


@dataclass(frozen=True)
class Settings:
    """How films become records; with the inputs, all that the bytes of a shard depend on."""

    size: int
    fit: str
    lungs: str
    retrocardiac: str
    frames: str
    codec: str


@dataclass(frozen=True)
class Made:
    """A record, and what is told of it elsewhere."""

    example: bytes  # the record as it is stored
    entry: Entry


def unknown_patient(film: str, study: str) -> str:
    """Name the patient of a film of which no table and no header names one: a study has one."""
    return f"study:{study}" if study else f"film:{film}"


def patients_of(paths: Iterable[Path]) -> list[str]:
    """Read the raw patient ids of files from their DICOM headers; empty where there is none."""
    return [dicom_ids(path)[0] for path in paths]


def make_record(job: Job, settings: Settings, key: bytes) -> Made:
    """Make the record of one film; raise FilmError if it is not usable."""
    film = read_film(job.path, frames=settings.frames)
    patient = job.patient
    if patient == unknown_patient(job.film, job.row.study):
        if film.patient:  # else a patient would be two, in two splits perhaps
            raise FilmError("cannot be read each time: its header gave no patient at first")
        if not job.row.study:
            patient += f" {pixel_digest(film.pixels)}"  # nobody of another data set
    view = job.row.view or film.view
    deep = settings.codec == "png16"
    pixels = read_deep(job.path, frames=settings.frames) if deep else film.pixels
    pixels, box = square_film(pixels, size=settings.size, fit=settings.fit)
    contour = find_lungs(
        film.pixels,
        job.mask,
        lungs=settings.lungs,
        retrocardiac=settings.retrocardiac,
        view=view if film.chest else "OTHER",
        name=given_name(job.mask, job.row.mask_source) if job.mask else "",
        stored_size=film.stored_size,
    )
    stored = (
        None if contour.mask is None else square_mask(contour.mask, box=box, size=settings.size)
    )
    if stored is None or not stored.any():  # a few pixels may vanish on the way
        stored, contour = None, NO_CONTOUR
    alone = f"film:{job.film}"  # a film of no known study is a study of its own
    record = Record(
        image=records.encode_image(pixels, settings.codec),
        lung_mask=None if stored is None else records.encode_mask(stored),
        lung_hull=None if stored is None else records.encode_mask(hull(stored)),
        mask_source=contour.source,
        mask_quality=contour.quality,
        id=keyed_id(key, "film", job.film),
        patient=keyed_id(key, "patient", patient),
        study=keyed_id(key, "study", job.row.study or film.study or alone),
        view=view,
        sex=job.row.sex or film.sex,
        age=film.age if job.row.age is None else stored_age(job.row.age),
        source=job.row.source,
        split=job.split,
        labels=job.row.labels,
        report=job.report,
        spacing=_stored_spacing(film, box),
        original_size=np.array(film.original_size, np.int32),
        valid_box=np.array(box, np.int32),
    )
    return Made(records.encode(record), _entry(record, film, report_id(record["report"], key)))


def report_id(report: Report, key: bytes) -> str:
    """Derive what stands in the index for findings and impression; empty if they are short."""
    text = normalise(f"{report['findings']} {report['impression']}", "keep").lower()
    return keyed_id(key, "text", text) if len(words(text)) >= LONG else ""


def _entry(record: Record, film: Film, text: str) -> Entry:
    return Entry(
        id=record["id"],
        patient=record["patient"],
        study=record["study"],
        split=record["split"],
        source=record["source"],
        view=record["view"],
        sex=record["sex"],
        age=record["age"],
        labels=label_text(record["labels"].tolist()),
        pixels=pixel_digest(film.pixels),
        phash=perceptual_hash(film.pixels),
        kind=film.kind,
        bits=film.bits,
        vendor=film.vendor,
        height=film.original_size[0],
        width=film.original_size[1],
        mask_source=record["mask_source"],
        mask_quality=round(record["mask_quality"], 4),
        flags=" ".join(film.flags),
        text=text,
    )


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
