"""Stored values of a DICOM film, of every transfer syntax that CR and DX archives use.

Each syntax has one decoder: with a second to fall back on, a stream that a strict decoder refuses
would come out of a lenient one as half a film.
"""

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Integer, Shaped, UInt
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from xmae_jax.data.codestream import Codestream, j2k_stream, jpeg_stream
from xmae_jax.data.dicom import Header, check_header, pixel_bytes, pixel_ratio, read_header
from xmae_jax.data.limits import FilmError, check_size
from xmae_jax.data.tone import dicom_grey, widened

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
_J2K = (uid.JPEG2000Lossless, uid.JPEG2000)
_PLUGINS = {
    **dict.fromkeys(_NATIVE, ""),
    **dict.fromkeys(_JPEG, "pillow"),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys(_J2K, "pylibjpeg"),
    uid.RLELossless: "",
}


def read_dicom(
    path: Path, *, frames: str = "refuse", dtype: Any = np.uint8
) -> tuple[UInt[np.ndarray, "h w"], Header]:
    """Read a film's grey values, in square pixels, and its header."""
    header = read_header(path)
    dataset = header.dataset
    values = _stored(path, header, frames=frames)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)
        pixels = _luminance(colours >> 8 if colours.dtype == np.uint16 else colours, dtype)
    elif values.ndim == 3:
        pixels = _luminance(values, dtype)
    elif photometric.startswith("MONOCHROME"):
        pixels = dicom_grey(values, dataset, dtype)
    else:
        raise FilmError("DICOM of one sample that is neither grey nor a palette")
    return _square(pixels, pixel_ratio(dataset)), header


def stored_values(path: str | Path, *, frames: str = "refuse") -> Integer[np.ndarray, "h w ..."]:
    """Decode the values that a DICOM file stores, before any table; raise FilmError."""
    return _stored(Path(path), read_header(Path(path)), frames=frames)


def _stored(path: Path, header: Header, *, frames: str) -> Integer[np.ndarray, "h w ..."]:
    dataset, syntax = header.dataset, header.syntax
    check_header(dataset, frames=frames)
    if syntax not in _PLUGINS:
        raise FilmError(f"DICOM: {_name(syntax)} cannot be decoded")
    if syntax in _NATIVE:
        dataset.PixelData = _native(path, header)
        dataset.NumberOfFrames = 1
        return _decoded(dataset, syntax)
    frame = _encoded(path, header)
    if syntax == uid.RLELossless:
        return _rle(frame, dataset)
    stream = j2k_stream(frame) if syntax in _J2K else jpeg_stream(frame)
    _compare(stream, dataset)
    if syntax in _JPEG and stream.components == 1:
        return _jpeg12(frame, stream) if stream.precision == 12 else _jpeg8(frame, dataset)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.NumberOfFrames = 1
    return _decoded(dataset, syntax)


def _name(syntax: uid.UID) -> str:
    return syntax.name if syntax.is_transfer_syntax else "unknown transfer syntax"


def _frame_bytes(dataset: Any) -> int:
    samples = int(dataset.SamplesPerPixel)
    if str(dataset.PhotometricInterpretation) == "YBR_FULL_422":
        samples = 2
    return int(dataset.Rows) * int(dataset.Columns) * samples * (int(dataset.BitsAllocated) // 8)


def _native(path: Path, header: Header) -> bytes:
    """Read the first frame of uncompressed values, if there are as many as the header says."""
    dataset, frame = header.dataset, _frame_bytes(header.dataset)
    length, count = header.length, int(dataset.NumberOfFrames)
    if length is None:
        raise FilmError("DICOM pixel data without a length")
    if length < frame * count:
        raise FilmError("DICOM pixel data shorter than the header says")
    if length - frame * count > frame // 8:  # padding to a block of the disk or tape
        raise FilmError("DICOM pixel data longer than the header says")
    data = pixel_bytes(path, header, frame)
    if len(data) < frame:
        raise FilmError("DICOM pixel data cut short")
    return data


def _encoded(path: Path, header: Header) -> bytes:
    """Read the first frame of encapsulated pixel data (PS3.5 annex A.4)."""
    if header.length is not None:
        raise FilmError("DICOM pixel data not encapsulated as the transfer syntax says")
    count = int(header.dataset.NumberOfFrames)
    data = pixel_bytes(path, header, None)
    parts = _fragments(data)
    if count == 1 and sum(data[start : start + 4] in _BEGINNINGS for start, _ in parts) > 1:
        raise FilmError("more frames than the header says")
    if count == 1:  # whatever the offset table says; some list each fragment there
        return b"".join(data[start:end] for start, end in parts)
    return next(generate_frames(data, number_of_frames=count))


_BEGINNINGS = (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xc0", b"\xff\xd8\xff\xdb", b"\xff\x4f\xff\x51")


def _fragments(data: bytes) -> list[tuple[int, int]]:
    """Return where each fragment's bytes begin and end, without the offset table's."""
    parts, at = [], 0
    while at + 8 <= len(data):
        tag, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            break
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > len(data):
            raise FilmError("DICOM pixel data cut short or damaged")
        parts.append((at + 8, at + 8 + length))
        at += 8 + length
    if len(parts) < 2:
        raise FilmError("DICOM pixel data without a picture")
    return parts[1:]


def _compare(stream: Codestream, dataset: Any) -> None:
    """Refuse a stream of another shape than its header's: it may decode to any size."""
    check_size(stream.rows, stream.columns)
    shape = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if (stream.rows, stream.columns, stream.components) != shape:
        raise FilmError("DICOM header and compressed picture differ in size")
    if stream.precision > int(dataset.BitsAllocated):
        raise FilmError("DICOM header and compressed picture differ in bits")
    if stream.precision > int(dataset.BitsStored) and _shift(dataset):
        raise FilmError("DICOM compressed values whose HighBit is not the last of BitsStored")


def _decoded(dataset: Any, syntax: uid.UID) -> Integer[np.ndarray, "h w ..."]:
    """Decode by the syntax's one decoder; one that is not installed, or fails, is named."""
    stored, shift = int(dataset.BitsStored), _shift(dataset) if syntax in _NATIVE else 0
    try:
        dataset.BitsStored = stored + shift
        values = pixel_array(dataset, index=0, decoding_plugin=_PLUGINS[syntax])
    except (NotImplementedError, RuntimeError) as error:
        missing = "missing dependencies" in str(error)
        cause = "needs a decoder that is not installed (extra [dicom])" if missing else "is damaged"
        raise FilmError(f"DICOM: {_name(syntax)} {cause}") from None
    finally:
        dataset.BitsStored = stored
    return values >> shift if shift else values


def _shift(dataset: Any) -> int:
    """Return the bit at which stored values start: 0, but for a retired use of HighBit."""
    shift = int(dataset.get("HighBit") or 0) + 1 - int(dataset.BitsStored)
    return shift if 0 < shift <= int(dataset.BitsAllocated) - int(dataset.BitsStored) else 0


def _jpeg8(frame: bytes, dataset: Any) -> Integer[np.ndarray, "h w"]:
    try:
        values = simplejpeg.decode_jpeg(frame, "GRAY", strict=True)[..., 0]
    except ValueError:
        raise FilmError("DICOM: JPEG is truncated or damaged") from None
    return values.view(np.int8) if int(dataset.PixelRepresentation) else values


def _jpeg12(frame: bytes, stream: Codestream) -> Integer[np.ndarray, "h w"]:
    """Decode a 12-bit JPEG by GDCM itself; pydicom does not hand it over."""
    try:
        import gdcm  # never before zlib: the system's library would call GDCM's copy, and crash
    except ImportError:
        raise FilmError("DICOM: 12-bit JPEG needs a decoder that is not installed") from None
    if b"\xff\xd9" not in frame[-64:]:
        raise FilmError("DICOM: JPEG is truncated")
    gdcm.Trace.ErrorOff()  # of lines about any film of 12 bits
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((stream.columns, stream.rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    syntax = gdcm.TransferSyntax.GetTSType(str(uid.JPEGExtended12Bit))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    text = image.GetBuffer()  # a C string, which SWIG makes text of
    data = text.encode("utf-8", "surrogateescape") if text else b""
    if len(data) != 2 * stream.rows * stream.columns:
        raise FilmError("DICOM: 12-bit JPEG is damaged")
    return np.frombuffer(data, "<u2").reshape(stream.rows, stream.columns)


def _rle(frame: bytes, dataset: Any) -> Integer[np.ndarray, "h w ..."]:
    """Decode RLE (PS3.5 annex G): a segment of PackBits for each byte of a sample, high first.

    Pillow's PackBits writes no more than it is asked for; pydicom's grows with the segment.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    samples, size = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated) // 8
    if len(frame) < 64:
        raise FilmError("DICOM: RLE is truncated")
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != samples * size:
        raise FilmError("DICOM: RLE segments do not fit the header")
    ends = [*offsets[1:count], len(frame)]
    planes = np.empty((samples, rows * columns, size), np.uint8)
    for number, (start, end) in enumerate(zip(offsets[:count], ends, strict=True)):
        try:
            line = Image.frombytes("L", (rows * columns, 1), frame[start:end], "packbits", "L")
        except ValueError:
            raise FilmError("DICOM: RLE is truncated or damaged") from None
        planes[number // size, :, size - 1 - number % size] = np.asarray(line)[0]
    signed = int(dataset.PixelRepresentation)
    values = planes.view(f"<{'i' if signed else 'u'}{size}").reshape(samples, rows, columns)
    unused = 8 * size - int(dataset.BitsStored)
    values = (values << (unused - _shift(dataset))) >> unused
    return values[0] if samples == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def _luminance(values: Shaped[np.ndarray, "h w c"], dtype: Any) -> UInt[np.ndarray, "h w"]:
    if values.dtype != np.uint8:
        raise FilmError("DICOM in colour with more than 8 bits")
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(values[..., :3])).convert("L"))
    return widened(grey, dtype)


def _square(pixels: UInt[np.ndarray, "h w"], ratio: float) -> UInt[np.ndarray, "H W"]:
    """Enlarge the coarser axis until pixels are square."""
    height, width = pixels.shape
    size = (round(width / ratio), height) if ratio < 1 else (width, round(height * ratio))
    if size == (width, height):
        return pixels
    check_size(size[1], size[0])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
