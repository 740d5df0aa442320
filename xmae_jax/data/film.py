"""Bytes of a DICOM, PNG, JPEG or TIFF file to one film: grey, 8 bits, upright, air dark.

docs/films.md says what each kind of file becomes, what is refused and what is flagged. The kind
of a file is read from its content, never from its name. Whatever cannot be a single radiograph
raises FilmError, whose reason names the cause and never repeats a value that could identify a
patient.
"""

import logging
import math
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from pydicom.config import disable_value_validation

from xmae_jax.data import looks, pictures
from xmae_jax.data.dicom import dicom_facts, raw_ids, read_header, spacing
from xmae_jax.data.dicom_pixels import read_dicom
from xmae_jax.data.limits import MAX_BYTES, FilmError

# All that `Film.flags` may hold, and what each means.
FLAGS = looks.FLAGS | {
    "age": "a DICOM header that gives an age that nobody has",
    "body_part": "a DICOM header that names another part of the body than the chest",
    "modality": "a DICOM header that names no kind of radiograph",
    "view": "a DICOM header that names a view that is not frontal, or not known",
}

# Their log lines repeat headers and tags; without a handler, Python prints the warnings.
for _name in ("pydicom", "pylibjpeg", "openjpeg", "PIL"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_T = TypeVar("_T")
_PICTURES = ("PNG", "JPEG", "TIFF")
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GROUPS = (b"\x02\0", b"\x08\0")  # first group of a DICOM data set without a preamble


@dataclass(frozen=True)
class Film:
    """One radiograph and what its file says about it."""

    pixels: UInt8[np.ndarray, "h w"]  # 0 black (air) to 255 white
    view: str = ""  # a DICOM view position, or empty
    spacing: tuple[float, float] = (math.nan, math.nan)  # mm between rows, between columns
    modality: str = ""  # of DICOM: "CR", "DX", ...
    chest: bool = True  # false where DICOM names another part of the body
    original_size: tuple[int, int] = (0, 0)  # height, width, upright and in square pixels
    stored_size: tuple[int, int] = (0, 0)  # the same before pixels were made square
    flags: tuple[str, ...] = ()  # what is unusual, sorted; FLAGS has them all
    kind: str = ""  # "PNG", "JPEG", "TIFF" or "DICOM" and its transfer syntax
    bits: int = 8  # of a stored sample
    vendor: str = ""  # of DICOM: a known maker's name, or empty
    sex: str = field(default="", repr=False)  # of DICOM: "F", "M" or empty
    age: float = field(default=math.nan, repr=False)  # of DICOM: years, as they are stored
    patient: str = field(default="", repr=False)  # raw ids: to be hashed, never to be shown
    study: str = field(default="", repr=False)


def read_film(path: str | Path, *, frames: str = "refuse") -> Film:
    """Read a film; raise FilmError for anything that is not one usable radiograph.

    `frames`: a file of several frames or pages is refused, or its "first" one is read.
    """
    path = Path(path)
    kind = sniff(path)
    film = _guarded(kind, lambda: _read(path, kind, frames=frames))
    if film.pixels.min() == film.pixels.max():
        raise FilmError("constant picture")
    return film


def read_deep(path: str | Path, *, frames: str = "refuse") -> UInt16[np.ndarray, "h w"]:
    """Read what `read_film` reads as grey of 16 bits, 0 to 65535."""
    path = Path(path)
    kind = sniff(path)
    read = read_dicom if kind == "DICOM" else partial(pictures.read_picture, kind=kind)
    return _guarded(kind, lambda: read(path, frames=frames, dtype=np.uint16)[0])


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Read a lung mask: any channel counts, and 0/1, 0/255 and resampled edges mean the same."""
    path = Path(path)
    kind = sniff(path)
    if kind not in _PICTURES:
        raise FilmError("mask is no picture")
    return _guarded("mask", lambda: pictures.read_mask(path, kind))


def dicom_ids(path: str | Path) -> tuple[str, str]:
    """Read the raw patient id and study UID of a DICOM file; empty where there are none."""
    path = Path(path)
    try:
        if sniff(path) != "DICOM":
            return "", ""
        return _guarded("DICOM", lambda: raw_ids(read_header(path).dataset))
    except FilmError:  # reading the film will give the reason
        return "", ""


def sniff(path: str | Path) -> str:
    """Name a file's kind ("DICOM", "PNG", "JPEG" or "TIFF") by its content, or raise FilmError."""
    path = Path(path)
    failed = ""
    head = b""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FilmError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise FilmError(f"file of more than {MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        failed = type(error).__name__
    if failed:  # raised here, the error does not carry the one that names the file
        raise FilmError(f"cannot be read ({failed})")
    if not head:
        raise FilmError("empty file")
    if head[128:132] == b"DICM" or head[:2] in _GROUPS:
        return "DICOM"
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_TIFFS):
        return "TIFF"
    if head.startswith(b"version https://git-lfs"):
        raise FilmError("Git LFS pointer in place of the picture")
    if head.startswith(b"\x1f\x8b"):
        raise FilmError("gzip file: unpack it first")
    raise FilmError("not a DICOM, PNG, JPEG or TIFF file")


def _guarded(kind: str, read: Callable[[], _T]) -> _T:
    """Call a reader in silence and turn whatever a broken file makes it raise into FilmError."""
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")  # they quote the header
            return read()
    except FilmError as error:
        reason = error.reason
    except (MemoryError, RecursionError) as error:
        reason = f"{kind} file asks for too much ({type(error).__name__})"
    except Exception as error:
        reason = f"{kind} file is damaged ({type(error).__name__})"
        if isinstance(error.__context__, RecursionError):  # which pydicom may take for damage
            reason = f"{kind} file asks for too much (RecursionError)"
    raise FilmError(reason)  # out here, it carries no other error, whose text may quote the file


def _read(path: Path, kind: str, *, frames: str) -> Film:
    if kind == "DICOM":
        pixels, header = read_dicom(path, frames=frames)
        facts = dicom_facts(header.dataset)
        facts["spacing"] = (min(spacing(header.dataset)),) * 2
        facts["stored_size"] = (int(header.dataset.Rows), int(header.dataset.Columns))
        kind = f"DICOM {header.syntax.name}"
    else:
        pixels, bits = pictures.read_picture(path, kind, frames=frames)
        facts: dict[str, Any] = {"bits": bits, "flags": (), "stored_size": pixels.shape}
    facts["flags"] = tuple(sorted({*facts["flags"], *looks.flags_of(pixels, facts["bits"])}))
    return Film(pixels=pixels, kind=kind, original_size=pixels.shape, **facts)
