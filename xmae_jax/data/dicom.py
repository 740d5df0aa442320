"""The header of a DICOM file, read within limits and before any pixel is read or inflated.

pydicom inflates a deflated file as a whole and reads all elements into memory; here it reads
through a budget, large values that no film needs are skipped, and the pixel data are read when the
header has been found sane.
"""

import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.filereader import read_dataset, read_partial
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from xmae_jax.data.limits import FilmError, check_size
from xmae_jax.data.people import age_of, plausible, sex_of, stored_age

MAX_HEADER = 8 << 20  # bytes before the pixels; pydicom needs up to 40 times as much for them
_MAX_VALUE = 64 << 10  # bytes; of longer values only lookup tables are read
_MAX_ELEMENTS = 20_000
_MAX_ITEMS = 20_000
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # item tags, little and big endian
_PIXELS, _LONG = 0x7FE00010, ("OB", "OW", "UN", "OF", "OD", "OL", "OV")
# ModalityLUTSequence, VOILUTSequence, and the data of a palette's three colours.
_TABLES = (0x00283000, 0x00283010, 0x00281201, 0x00281202, 0x00281203)

# ViewPosition, Modality and Manufacturer may hold anything, so only known terms are passed on.
_POSTURES = tuple("AXIAL LORDOTIC ERECT UPRIGHT SUPINE PORTABLE LLD RLD".split())
_FRONTAL_VIEWS = (
    *("PA", "AP", "FRONTAL"),
    *(f"{view} {posture}" for view in ("PA", "AP") for posture in _POSTURES),
)
_VIEWS = (
    *_FRONTAL_VIEWS,
    *"L LAT LATERAL LL RL LLD RLD LLO RLO LAO RAO LPO RPO OBLIQUE SWIMMERS".split(),
    *("LEFT LATERAL", "RIGHT LATERAL", "XTABLE LATERAL"),
)
_NOT_TOLD = ("UNKNOWN", "UNDEFINED", "UNSPECIFIED", "DEFAULT", "OTHER", "NONE", "N/A", "NA")
_RADIOGRAPHS = ("CR", "DX", "DR", "RG", "RF", "XR")
_FILMS = (*_RADIOGRAPHS, "OT", "SC")
_USUAL = dict(SamplesPerPixel=1, PixelRepresentation=0, PlanarConfiguration=0, NumberOfFrames=1)
_NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
_NOT_FILMS = tuple("CT MR US PT NM SEG MG PX IO XA XC ES SM OP GM RTIMAGE RTDOSE".split())
_CHEST = tuple("CHEST THORAX TORAX TORACE TORAKS CXR LUNG PULM RIB".split())
_VENDORS = {
    "agfa": "Agfa",
    "canon": "Canon",
    "carestream": "Carestream",
    "drtech": "DRTECH",
    "eastman": "Carestream",
    "fuji": "Fujifilm",
    "ge healthcare": "GE",
    "ge medical": "GE",
    "hologic": "Hologic",
    "iray": "iRay",
    "kodak": "Carestream",
    "konica": "Konica Minolta",
    "lodox": "Lodox",
    "lumisys": "Lumisys",
    "mindray": "Mindray",
    "philips": "Philips",
    "rayence": "Rayence",
    "samsung": "Samsung",
    "shimadzu": "Shimadzu",
    "siemens": "Siemens",
    "swissray": "Swissray",
    "toshiba": "Canon",  # its medical branch was bought in 2016
    "vidar": "Vidar",
    "vieworks": "Vieworks",
}


@dataclass(frozen=True)
class Header:
    """What stands before the pixels, and where in the file's plain form these begin."""

    dataset: Any
    syntax: UID
    start: int
    length: int | None  # bytes of pixel data as the header says; None if encapsulated
    inflate_from: int | None = None  # where a deflated file's stream begins
    offset: int = 0  # of the plain form's first byte that was inflated


def read_header(path: Path) -> Header:
    """Read a DICOM header up to the pixels; raise FilmError if it asks for too much or has none."""
    with path.open("rb") as file:
        deflated = _deflated_at(file.read(_MAX_VALUE))
        if deflated is None:
            return _read_header(file, None)
    plain = _META + _inflate(path, deflated, MAX_HEADER)
    return _read_header(io.BytesIO(plain), deflated)


class _Budget:
    """A file of which MAX_HEADER bytes and _MAX_ITEMS items may be read, and any number skipped."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file, self._bytes, self._items = file, MAX_HEADER, _MAX_ITEMS

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._bytes + 1 if size < 0 else min(size, self._bytes + 1))
        self._bytes -= len(data)
        self._items -= max(data.count(item) for item in _ITEMS)
        if self._bytes < 0:
            raise FilmError(f"DICOM header of more than {MAX_HEADER >> 20} MiB")
        if self._items < 0:
            raise FilmError("DICOM header with too many items")
        return data


def _read_header(file: Any, inflate_from: int | None) -> Header:
    found: list[tuple[str | None, int]] = []
    seen = 0

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal seen
        seen += 1
        if seen > _MAX_ELEMENTS:
            raise FilmError("DICOM header with too many elements")
        if tag in (0x7FE00008, 0x7FE00009):
            raise FilmError("DICOM with floating point pixels")
        if tag == _PIXELS:
            found.append((vr, length))
        return tag == _PIXELS

    file.seek(0)
    budget: Any = _Budget(file)
    try:
        dataset = read_partial(budget, stop_when=stop, defer_size=_MAX_VALUE, force=True)
    except OSError as error:  # what pydicom makes of any error while it reads an item
        if isinstance(error.__context__, FilmError | RecursionError):
            raise error.__context__ from None
        raise
    start = file.tell()
    if not found:
        if inflate_from is not None and file.seek(0, io.SEEK_END) >= MAX_HEADER:
            raise FilmError(f"DICOM header of more than {MAX_HEADER >> 20} MiB")
        raise FilmError("DICOM without pixel data, or cut short")
    _read_tables(dataset, budget)
    vr, length = found[0]
    return Header(
        dataset=dataset,
        syntax=_syntax(dataset) if inflate_from is None else DeflatedExplicitVRLittleEndian,
        start=start + (12 if vr in _LONG else 8),
        length=None if length == 0xFFFFFFFF else length,
        inflate_from=inflate_from,
        offset=0 if inflate_from is None else len(_META),
    )


def _read_tables(dataset: Any, file: Any) -> None:
    """Read the lookup tables among the values that were skipped, and forget the others."""
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag, keep_deferred=True)
        if not element.is_raw or element.value is not None or element.length <= _MAX_VALUE:
            continue
        if tag not in _TABLES:
            del dataset[tag]
            continue
        file.seek(element.value_tell)
        dataset[tag] = element._replace(value=file.read(element.length))


def _plain_meta() -> bytes:
    """Return the file meta information of a plain file, to stand before inflated bytes."""
    value = ExplicitVRLittleEndian.encode() + b"\0"
    return bytes(128) + b"DICM\x02\0\x10\0UI" + len(value).to_bytes(2, "little") + value


_META = _plain_meta()


def _deflated_at(head: bytes) -> int | None:
    """Return where the deflated part begins, or None if the transfer syntax is another."""
    buffer = io.BytesIO(head)
    buffer.seek(132 if head[128:132] == b"DICM" else 0)
    meta = read_dataset(
        buffer,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
    )
    deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    return buffer.tell() if deflated else None


def _inflate(path: Path, start: int, limit: int) -> bytes:
    """Inflate no more than `limit` bytes of a raw deflate stream."""
    with path.open("rb") as file:
        file.seek(start)
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), limit)
        except zlib.error:
            raise FilmError("deflated DICOM is damaged") from None


def pixel_bytes(path: Path, header: Header, limit: int | None) -> bytes:
    """Read the pixel data's bytes, `limit` at most; all that is left of the file if None."""
    if header.inflate_from is not None:
        length = header.length if limit is None else limit
        if length is None:
            raise FilmError("deflated DICOM with encapsulated pixels")
        end = header.start - header.offset + length
        return _inflate(path, header.inflate_from, end)[header.start - header.offset :]
    with path.open("rb") as file:
        file.seek(header.start)
        return file.read() if limit is None else file.read(limit)


def _syntax(dataset: Any) -> UID:
    meta = getattr(dataset, "file_meta", {})
    if "TransferSyntaxUID" not in meta:
        if dataset.original_encoding == (None, None) or "Rows" not in dataset:
            raise FilmError("DICOM without a transfer syntax")
        dataset.ensure_file_meta()  # a bare data set: implicit VR unless pydicom saw otherwise
        implicit, little = dataset.original_encoding
        syntax = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    return UID(dataset.file_meta.TransferSyntaxUID)


def check_header(dataset: Any, *, frames: str) -> None:
    """Refuse by the header what is no single radiograph or lies about itself.

    Elements that are missing or empty get the value that most files have, where no other is likely.
    """
    modality = _term(dataset, "Modality")
    if modality in _NOT_FILMS:
        raise FilmError(f"modality {modality}, not a radiograph")
    for keyword, value in _USUAL.items():
        if not dataset.get(keyword):
            setattr(dataset, keyword, value)
    missing = [keyword for keyword in _NEEDED if not dataset.get(keyword)]
    if missing:
        raise FilmError(f"DICOM header without {missing[0]}")
    check_size(int(dataset.Rows), int(dataset.Columns))
    if int(dataset.NumberOfFrames) > 1 and frames != "first":
        raise FilmError("more than one frame")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16):
        raise FilmError("DICOM pixels of other than 8 or 16 bits")
    if not 1 <= stored <= allocated:
        raise FilmError("DICOM header with more bits stored than allocated")
    if int(dataset.SamplesPerPixel) not in (1, 3):
        raise FilmError("DICOM pixels of other than 1 or 3 samples")


def dicom_facts(dataset: Any) -> dict[str, Any]:
    """Return what a header tells of a film, by the names of Film's fields; known terms only."""
    modality, part = _term(dataset, "Modality"), _term(dataset, "BodyPartExamined")
    view, maker = _term(dataset, "ViewPosition"), str(dataset.get("Manufacturer") or "").lower()
    chest = part in ("", *_NOT_TOLD) or any(word in part for word in _CHEST)
    flags = {
        "modality": modality not in _RADIOGRAPHS,
        "body_part": not chest,
        "view": view not in ("", *_NOT_TOLD, *_FRONTAL_VIEWS),
        "burnt_in_text": _term(dataset, "BurnedInAnnotation") == "YES",
    }
    patient, study = raw_ids(dataset)
    age = _age(dataset)
    flags["age"] = not math.isnan(age) and not plausible(age)
    return {
        "view": view if view in _VIEWS else "",
        "modality": modality if modality in _FILMS else "",
        "chest": chest,
        "bits": int(dataset.BitsStored),
        "vendor": next((name for word, name in _VENDORS.items() if word in maker), ""),
        "flags": tuple(flag for flag, on in flags.items() if on),
        "sex": sex_of(_term(dataset, "PatientSex")) or "",
        "age": stored_age(age),
        "patient": patient,
        "study": study,
    }


def _term(dataset: Any, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip().upper()


def _age(dataset: Any) -> float:
    age = age_of(_term(dataset, "PatientAge"))
    return math.nan if age is None else age


def raw_ids(dataset: Any) -> tuple[str, str]:
    """Return the raw patient id and study UID: to be hashed, never to be shown."""
    patient, study = dataset.get("PatientID"), dataset.get("StudyInstanceUID")
    return str(patient or "").strip(), str(study or "")


def spacing(dataset: Any) -> tuple[float, float]:
    """Read mm between rows and columns: of the patient if calibrated, else of the detector."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            row, column = (float(value) for value in dataset.get(name) or ())
        except (ValueError, TypeError):
            continue
        if 0 < row < 10 and 0 < column < 10:
            return row, column
    return math.nan, math.nan


def pixel_ratio(dataset: Any) -> float:
    """Return a pixel's height over its width; 1 where the header does not say."""
    row, column = spacing(dataset)
    if not row > 0:
        try:
            row, column = (float(value) for value in dataset.get("PixelAspectRatio") or (1, 1))
        except (ValueError, TypeError):
            return 1.0
    if not 0.25 <= row / column <= 4:
        raise FilmError("pixels more than four times as long as wide")
    return row / column
