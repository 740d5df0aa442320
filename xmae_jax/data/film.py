"""Bytes of a DICOM, PNG, JPEG or TIFF file to one film: grey, 8 bits, upright, air dark.

A DICOM film goes through its modality LUT, then its VOI LUT or first window, and is then
inverted if it is MONOCHROME1 (DICOM PS3.4 annex N.2). The kind of a file is read from its
content, never from its name. Whatever cannot be a single radiograph raises FilmError, whose
reason names the cause and never repeats a value that could identify a patient.
"""

import io
import math
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Bool, Integer, Num, UInt8
from PIL import Image, ImageOps
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 29
MIN_SIDE = 64  # px: four 16 px patches; nothing smaller shows a chest

_FORMATS = ("PNG", "JPEG", "TIFF")
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GROUPS = (b"\x02\0", b"\x08\0")  # first group of a DICOM data set without a preamble
# ViewPosition and Modality are free enough to hold anything, so only known terms are passed on.
_VIEWS = ("PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO")
_FILMS = ("CR", "DX", "DR", "RG", "RF", "XR", "OT", "SC")
_NOT_FILMS = tuple("CT MR US PT NM SEG MG PX IO XA XC ES SM OP GM RTIMAGE RTDOSE".split())


class FilmError(Exception):
    """A file that holds no usable film; `reason` is short and names no patient."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Film:
    """One radiograph and what its file says about it."""

    pixels: UInt8[np.ndarray, "h w"]  # 0 black (air) to 255 white
    view: str = ""  # a DICOM view position, or empty
    spacing: tuple[float, float] = (math.nan, math.nan)  # mm between rows, between columns
    modality: str = ""  # of DICOM: "CR", "DX", ...
    chest: bool = True  # false where DICOM names another part of the body
    original_size: tuple[int, int] = (0, 0)  # height, width, upright
    kind: str = ""
    bits: int = 8
    vendor: str = ""
    flags: tuple[str, ...] = ()
    patient: str = field(default="", repr=False)  # raw ids: to be hashed, never to be shown
    study: str = field(default="", repr=False)


def read_film(path: str | Path) -> Film:
    """Read a film; raise FilmError for anything that is not one usable radiograph."""
    path = Path(path)
    kind = sniff(path)
    # A broken file can raise nearly anything in a decoder; a reason must not echo its content.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            film = _read_dicom(path) if kind == "DICOM" else _read_picture(path, kind)
    except FilmError:
        raise
    except (MemoryError, RecursionError) as error:
        raise FilmError(f"{kind} file asks for too much ({type(error).__name__})") from None
    except Exception as error:
        raise FilmError(f"{kind} file is damaged ({type(error).__name__})") from error
    if film.pixels.min() == film.pixels.max():
        raise FilmError("constant picture")
    return film


def sniff(path: str | Path) -> str:
    """Name a file's kind ("DICOM", "PNG", "JPEG" or "TIFF") by its content, or raise FilmError."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FilmError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise FilmError(f"file of more than {MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise FilmError(f"cannot be read ({type(error).__name__})") from None
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
    raise FilmError("not a DICOM, PNG, JPEG or TIFF file")


def dicom_ids(path: str | Path) -> tuple[str, str]:
    """Read the raw patient id and study UID of a DICOM file; empty where there are none."""
    try:
        if sniff(path) != "DICOM":
            return "", ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(
                path,
                stop_before_pixels=True,
                force=True,
                specific_tags=["PatientID", "StudyInstanceUID"],
            )
            return _ids(header)
    except Exception:  # reading the film will give the reason
        return "", ""


def _ids(header: Any) -> tuple[str, str]:
    return str(header.get("PatientID") or "").strip(), str(header.get("StudyInstanceUID") or "")


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise FilmError(f"more than {MAX_PIXELS // 1_000_000} megapixels")
    if min(height, width) < MIN_SIDE:
        raise FilmError(f"a side shorter than {MIN_SIDE} pixels")


def _read_picture(path: Path, kind: str) -> Film:
    data = path.read_bytes()
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise FilmError("more than one frame")
        if kind == "PNG":  # decoding skips the checksums of the picture data
            Image.open(io.BytesIO(data), formats=_FORMATS).verify()
        white_is_zero = kind == "TIFF" and getattr(picture, "tag_v2", {}).get(262) == 0
        picture = ImageOps.exif_transpose(picture)
        picture.load()
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        truncated = "truncated" if "truncated" in str(error) else "damaged"
        raise FilmError(f"{kind} file is {truncated}") from None
    except Image.DecompressionBombError:
        raise FilmError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    if picture.mode[0] in "IF":
        pixels = stretch(np.asarray(picture))
        pixels = 255 - pixels if white_is_zero else pixels
    else:
        pixels = _grey(picture)
    return Film(pixels=pixels, original_size=(picture.height, picture.width))


def _grey(picture: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Convert 8-bit modes to grey; alpha is dropped, since arrows and crops are drawn with it."""
    if picture.mode in ("P", "PA", "CMYK"):
        picture = picture.convert("RGB")  # the palette's colours, not its indices
    elif picture.mode in ("LA", "La"):
        picture = picture.getchannel("L")
    return np.asarray(picture.convert("L"))


def stretch(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Map the range that a film uses to 0..255, clipping one pixel in a thousand at each end.

    A 12-bit film in 16 bits would be black if scaled by 65535, and one hot pixel would darken a
    film that is scaled by its maximum.
    """
    if not np.isfinite(values).all():
        raise FilmError("values that are not finite")
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        raise FilmError("constant picture")
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _read_dicom(path: Path) -> Film:
    dataset = pydicom.dcmread(path, force=True)
    _check_dicom(dataset)
    values = _decode_dicom(dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)
        pixels = _mean_colour(colours >> 8 if colours.dtype == np.uint16 else colours)
    elif values.ndim == 3:
        pixels = _mean_colour(values)
    else:
        pixels = _window(values, dataset)
    if photometric == "MONOCHROME1":
        pixels = 255 - pixels
    patient, study = _ids(dataset)
    view = str(dataset.get("ViewPosition") or "").strip().upper()
    modality = str(dataset.get("Modality") or "").strip().upper()
    part = str(dataset.get("BodyPartExamined") or "").strip().upper()
    return Film(
        pixels=pixels,
        view=view if view in _VIEWS else "",
        spacing=_spacing(dataset),
        modality=modality if modality in _FILMS else "",
        chest=not part or any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB")),
        original_size=(values.shape[0], values.shape[1]),
        patient=patient,
        study=study,
    )


def _check_dicom(dataset: Any) -> None:
    """Refuse by the header what is no single radiograph, before anything is decoded."""
    if "PixelData" not in dataset:
        raise FilmError("DICOM without pixel data, or cut short")
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        if dataset.original_encoding == (None, None) or "Rows" not in dataset:
            raise FilmError("DICOM without a transfer syntax")
        dataset.ensure_file_meta()  # a bare data set: implicit VR unless pydicom saw otherwise
        implicit, little = dataset.original_encoding
        syntax = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality in _NOT_FILMS:
        raise FilmError(f"modality {modality}, not a radiograph")
    _check_size(int(dataset.Rows), int(dataset.Columns))
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise FilmError("more than one frame")
    if not 8 <= int(dataset.get("BitsAllocated") or 0) <= 16:
        raise FilmError("DICOM pixels of fewer than 8 or more than 16 bits")


def _decode_dicom(dataset: Any) -> Integer[np.ndarray, "h w ..."]:
    """Decompress the stored values; a transfer syntax that cannot be read is named."""
    try:
        return pixel_array(dataset)
    except (NotImplementedError, RuntimeError) as error:
        missing = "missing dependencies" in str(error)
        cause = (
            "needs a decoder that is not installed (extra [dicom])"
            if missing
            else "cannot be decoded"
        )
        raise FilmError(f"DICOM: {UID(dataset.file_meta.TransferSyntaxUID).name} {cause}") from None


def _mean_colour(values: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w"]:
    if values.dtype != np.uint8:
        raise FilmError("DICOM in colour with more than 8 bits")
    return np.asarray(Image.fromarray(np.ascontiguousarray(values[..., :3])).convert("L"))


def _window(values: Integer[np.ndarray, "h w"], dataset: Any) -> UInt8[np.ndarray, "h w"]:
    """Apply the modality LUT and the VOI LUT or window; stretch where the header has none.

    Both are functions of one value, so they are computed once for each value in the film's range.
    """
    low, high = int(values.min()), int(values.max())
    levels = np.arange(low, high + 1)
    modality = apply_modality_lut(levels, dataset)
    if np.array_equal(modality, np.rint(modality)):
        modality = np.rint(modality).astype(np.int64)  # a VOI LUT is indexed by whole numbers
    table = _voi(modality, dataset)
    if table is None or table[0] == table[-1] and table.min() == table.max():
        if int(dataset.BitsStored) == 8 and np.array_equal(modality, levels) and low >= 0:
            return values.astype(np.uint8)  # display values already
        return stretch(modality[values - low])
    return table[values - low]


def _voi(modality: Num[np.ndarray, " n"], dataset: Any) -> UInt8[np.ndarray, " n"] | None:
    """Map modality values to grey by the VOI LUT or the first window; None where neither works."""
    huge = np.array([np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int64)
    try:
        # The same function on the extremes gives the range that it maps to, whatever the header.
        ends = np.asarray(apply_voi_lut(huge, dataset), np.float64)
        mapped = np.asarray(apply_voi_lut(modality, dataset), np.float64)
    except (ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return None  # a window of no width, a LUT of no known depth: the header is wrong
    if np.array_equal(ends, huge):
        return None
    low = min(ends.min(), mapped.min())
    high = max(ends.max(), mapped.max())
    if not high > low:
        return None
    return np.clip(np.rint((mapped - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _spacing(dataset: Any) -> tuple[float, float]:
    """Read mm between rows and columns: of the patient if calibrated, else of the detector."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(value) for value in dataset.get(name) or ())
        except (ValueError, TypeError):
            continue
        if 0 < row < 10 and 0 < column < 10:
            return row, column
    return math.nan, math.nan


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Read a lung mask: any channel counts, and 0/1, 0/255 and resampled edges mean the same."""
    kind = sniff(path)
    if kind not in _FORMATS:
        raise FilmError("mask is no picture")
    try:
        picture = Image.open(path, formats=_FORMATS)
        if picture.height * picture.width > MAX_PIXELS:
            raise FilmError(f"mask of more than {MAX_PIXELS // 1_000_000} megapixels")
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("P", "PA", "CMYK"):
            picture = picture.convert("RGB")
        values = np.asarray(picture)
    except FilmError:
        raise
    except Exception as error:
        raise FilmError(f"mask is damaged ({type(error).__name__})") from None
    if values.ndim == 3:
        channels = values.shape[-1] - (picture.mode in ("LA", "RGBA"))
        values = values[..., :channels].max(-1)
    if values.dtype == bool:
        return values
    top = values.max()
    # Small whole numbers are labels (1 and 2 for the two lungs); grey edges are cut at half.
    return values > 0 if top < 8 else values >= (128 if top <= 255 else top / 2)
