"""Make files that lie, explode, hang or break decoders, each with what must become of it.

Bombs are small on disk and quick to make. `make(folder)` writes all of them.
"""

import io
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import (
    JPEG2000LosslessEncoder,
    JPEGLSLosslessEncoder,
    RLELosslessEncoder,
)

from tests.data import made
from tests.data.made import Packed, deflated, dicom_bytes, element, meta, png, png_chunk, zeros

FILM = np.add.outer(np.arange(128) * 16, np.arange(96) * 20).astype(np.uint16)  # 0..3932
GREY = (FILM >> 4).astype(np.uint8)
WINDOW = dict(WindowCenter=2048, WindowWidth=4096)
DEFLATED, EXPLICIT = str(uid.DeflatedExplicitVRLittleEndian), str(uid.ExplicitVRLittleEndian)
# These are one film.
SAME = ("mono2", "mono1", "implicit", "big endian", "deflated", "rle", "j2k", "jls", "lossless")
Cases = Iterator[tuple[str, bytes, str | None]]


def make(folder: Path) -> dict[str, str | None]:
    """Write every case; return name -> part of the reason to reject it with, None to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: dict[str, str | None] = {}
    for source in (_controls, _pngs, _jpegs, _tiffs, _headers, _pixels, _streams, _others):
        for name, data, expected in source():
            assert name not in cases, name
            (folder / name).write_bytes(data)
            cases[name] = expected
    return cases | _special(folder)


def _saved(kind: str, values=GREY, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def _encoded(encoder, values=FILM) -> bytes:
    shape = dict(rows=values.shape[0], columns=values.shape[1], samples_per_pixel=1)
    bits = dict(bits_allocated=16, bits_stored=12, pixel_representation=0)
    return encoder.encode(
        values.tobytes(),
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
        **shape,
        **bits,
    )


def _controls() -> Cases:
    def film(**tags):
        return dicom_bytes(tags.pop("values", FILM), **WINDOW, **tags)

    yield "mono2", film(), None
    yield (
        "mono1",
        film(values=(4095 - FILM).astype(np.uint16), PhotometricInterpretation="MONOCHROME1"),
        None,
    )
    yield "implicit", film(syntax=uid.ImplicitVRLittleEndian), None
    yield (
        "big endian",
        film(syntax=uid.ExplicitVRBigEndian, PixelData=FILM.byteswap().tobytes()),
        None,
    )
    yield "deflated", film(syntax=uid.DeflatedExplicitVRLittleEndian), None
    yield "rle", film(syntax=uid.RLELossless, frame=_encoded(RLELosslessEncoder)), None
    yield "j2k", film(syntax=uid.JPEG2000Lossless, frame=_encoded(JPEG2000LosslessEncoder)), None
    yield "jls", film(syntax=uid.JPEGLSLossless, frame=_encoded(JPEGLSLosslessEncoder)), None
    yield "lossless", made.by_gdcm(film(), "JPEGLosslessProcess14_1"), None
    blocks = np.add.outer(np.arange(12) * 300, np.arange(10) * 50).astype(np.uint16)
    size = np.zeros((96, 80), np.uint16)
    tags = dict(syntax=uid.JPEGExtended12Bit, frame=made.jpeg12(blocks))
    yield "jpeg12", film(values=size, **tags), None
    yield "png", _saved("PNG"), None
    yield "png16", _saved("PNG", FILM), None
    yield "jpeg", _saved("JPEG"), None
    yield "tiff", _saved("TIFF"), None


def _pngs() -> Cases:
    film, end = made.pixels_chunk(GREY), png_chunk(b"IEND", b"")
    bomb = zlib.compress(bytes(100 << 20), 1)
    whole = png(96, 128, film)
    yield "60000.png", png(60_000, 60_000, png_chunk(b"IDAT", zlib.compress(bytes(1000)))), "mega"
    yield "2147483647x64.png", png(2**31 - 1, 64, end), "mega"
    yield "no width.png", png(0, 128, film), ""
    yield "8000x8000 of nothing.png", png(8000, 8000, end), ""
    yield "too many pixels.png", png(96, 128, png_chunk(b"IDAT", bomb), end), ""
    yield "one row.png", png(96, 128, made.pixels_chunk(GREY[:1])), "truncated"
    yield "cut.png", whole[: len(whole) // 2], "truncated"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 8
    yield "flipped.png", bytes(flipped), "damaged"
    yield "signature.png", whole[:8], ""
    yield "no header.png", whole[:8] + film, ""
    yield "depth 5.png", png(96, 128, film, depth=5), ""
    yield "no palette.png", png(96, 128, film, colour=3), ""
    yield "colour 9.png", png(96, 128, film, colour=9), ""
    long = struct.pack(">I", 2**31 - 1) + b"IDAT" + b"\0" * 100
    yield "endless chunk.png", png(96, 128, long), ""
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "many frames.png", png(96, 128, frames, film), "frame"
    yield "iccp bomb.png", png(96, 128, png_chunk(b"iCCP", b"a\0\0" + bomb), film), "too large"
    yield "ztxt bomb.png", png(96, 128, png_chunk(b"zTXt", b"a\0\0" + bomb), film), "too large"
    text = png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)
    yield "itxt bomb.png", png(96, 128, text, film), "too large"
    million = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    yield "many texts.png", png(96, 128, million * 200, film), "too large"
    loop = b"II*\0\x08\0\0\0" + b"\x01\0" + struct.pack("<HHII", 34665, 4, 1, 8)
    yield "exif loop.png", png(96, 128, png_chunk(b"eXIf", loop + b"\x08\0\0\0"), film), None


def _jpegs() -> Cases:
    whole = _saved("JPEG")
    frame = whole.index(b"\xff\xc0")

    def shaped(height, width, depth=8):
        size = struct.pack(">BHH", depth, height, width)
        return whole[: frame + 4] + size + whole[frame + 9 :]

    yield "65500.jpg", shaped(65_500, 65_500), "mega"
    yield "taller than it is.jpg", shaped(7000, 96), ""
    yield "no rows.jpg", shaped(0, 96), ""
    yield "12 bits.jpg", shaped(128, 96, 12), "bits"
    yield "cut.jpg", whole[: len(whole) * 2 // 3], "truncated"
    yield "start.jpg", whole[:3], ""
    yield "no frame.jpg", whole[:frame] + whole[frame + 19 :], ""
    yield "noise.jpg", b"\xff\xd8\xff" + bytes(range(256)) * 40, ""
    waves = _saved("JPEG", progressive=True)
    scan = waves.index(b"\xff\xda")
    second = waves.index(b"\xff\xda", scan + 2)
    yield "scans.jpg", waves[:second] + waves[scan:second] * 3000 + b"\xff\xd9", "scans"
    entries = struct.pack("<HHII", 700, 1, 60_000, 8) * 5000
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    yield "exif bomb.jpg", whole[:2] + segment * 20 + whole[2:], None


def _tiffs() -> Cases:
    whole = _saved("TIFF")
    first = struct.unpack_from("<I", whole, 4)[0]
    count = struct.unpack_from("<H", whole, first)[0]
    following = first + 2 + 12 * count

    def entry(tag, kind, number, value):
        return struct.pack("<HHII", tag, kind, number, value)

    def with_value(tag, value):
        data = bytearray(whole)
        for at in range(first + 2, following, 12):
            if struct.unpack_from("<H", data, at)[0] == tag:
                struct.pack_into("<HII", data, at + 2, 4, 1, value)
        return bytes(data)

    def directory(*entries):
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)

    loop = whole[:following] + struct.pack("<I", first) + whole[following + 4 :]
    yield "loop.tif", loop, "frame"
    yield "60000.tif", with_value(256, 60_000)[:-1] + b"\0", ""
    yield "giga.tif", with_value(257, 2**31 - 1), "mega"
    size = (entry(256, 4, 1, 96), entry(257, 4, 1, 128))
    yield "entries.tif", directory(*size, *[entry(700, 1, 1, 8)] * 60_000), "entries"
    same = [entry(tag, 1, 10_000_000, 8) for tag in range(40_000, 40_400)]
    yield "values.tif", directory(*size, *same) + bytes(1000), "too large"
    tiles = (entry(322, 4, 1, 2**30), entry(323, 4, 1, 2**30), entry(324, 4, 1, 8))
    yield "tile.tif", directory(*size, *tiles, entry(325, 4, 1, 100)), "mega"
    yield "past the end.tif", b"II*\0" + struct.pack("<I", 2**31), "damaged"
    yield "big.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**60), "damaged"
    below = entry(34665, 4, 1, 8)
    yield "below itself.tif", directory(*size, below), ""
    pages = _saved("TIFF", save_all=True, append_images=[Image.fromarray(GREY)] * 3)
    yield "pages.tif", pages, "frame"
    yield "cut.tif", whole[: len(whole) - 5000], ""
    hole = GREY.astype(np.float32)
    hole[5, 5] = np.nan
    yield "nan.tif", _saved("TIFF", hole), "finite"


def _headers() -> Cases:
    film = made.body(FILM) + element(0x7FE0, 0x10, "OW", FILM.tobytes())
    private = element(9, 0x10, "LO", b"XX")
    opened = element(0x40, 0xA730, "SQ", b"", length=0xFFFFFFFF)
    opened += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    yield "nested.dcm", meta(EXPLICIT) + opened * 2000 + closed * 2000 + film, "too much"
    yield "never closed.dcm", meta(EXPLICIT) + opened * 2000, ""
    many = b"".join(element(0x0901, 0x1000 + at, "LO", b"a ") for at in range(50_000))
    yield "elements.dcm", meta(EXPLICIT) + many, "elements"
    empty = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 500_000
    items = element(0x40, 0xA730, "SQ", empty, length=0xFFFFFFFF) + closed[-8:]
    yield "items.dcm", meta(EXPLICIT) + items + film, "items"
    small = b"".join(element(9, at & 0xFFFF, "LO", b"") for at in range(200_000))
    yield "elements of an item.dcm", meta(EXPLICIT) + opened + small + closed + film, None
    large = private + element(9, 0x1001, "OB", bytes(9 << 20))
    yield "large value.dcm", meta(EXPLICIT) + large + film, None
    yield (
        "large header.dcm",
        meta(EXPLICIT) + element(9, 0x1001, "OB", bytes(60_000)) * 150 + film,
        "header of more",
    )
    table = element(0x28, 0x3010, "SQ", b"", length=0xFFFFFFFF - 1) + bytes(9 << 20)
    yield "large table.dcm", meta(EXPLICIT) + table + film, "without pixel"
    table = element(0x28, 0x3010, "SQ", b"", length=9 << 20) + bytes(9 << 20)
    yield "large tables.dcm", meta(EXPLICIT) + table + film, "header of more"
    endless = element(9, 0x1001, "OB", b"", length=0xFFFFFFF0)
    yield "endless element.dcm", meta(EXPLICIT) + endless + film, "without pixel"
    yield "bare DICM.dcm", bytes(128) + b"DICM", ""
    yield "cut header.dcm", (meta(EXPLICIT) + film)[:250], ""
    yield "deflated bomb.dcm", meta(DEFLATED) + deflated(film, Packed(zeros(4000))), None
    endless = made.body(FILM) + element(0x7FE0, 0x10, "OW", b"", length=3 << 30)
    bomb = deflated(endless, Packed(zeros(3072)))
    yield "deflated pixels.dcm", meta(DEFLATED) + bomb, "longer"
    endless = private + element(9, 0x1001, "OB", b"", length=2 << 30)
    bomb = deflated(endless, Packed(zeros(2048)), film)
    yield "deflated header.dcm", meta(DEFLATED) + bomb, "header of more"
    yield "deflated garbage.dcm", meta(DEFLATED) + b"\xff" * 1000, "deflated"
    yield "deflated cut.dcm", meta(DEFLATED) + deflated(film)[:-9000], "short"
    unknown = dicom_bytes(FILM).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
    yield "unknown syntax.dcm", unknown, "unknown transfer syntax"
    tags = dict(
        ct=dict(Modality="CT"),
        float=dict(FloatPixelData=FILM.astype(np.float32).tobytes(), PixelData=b"\0\0"),
        samples=dict(SamplesPerPixel=255),
        bits=dict(BitsAllocated=32),
        stored=dict(BitsStored=17),
        none=dict(BitsAllocated=0),
        aspect=dict(PixelAspectRatio=["1", "1000"]),
        palette=dict(PhotometricInterpretation="PALETTE COLOR"),
        colour=dict(PhotometricInterpretation="RGB"),
    )
    for name, changed in tags.items():
        yield f"{name}.dcm", dicom_bytes(FILM, **changed), ""
    harmless = dict(
        window=dict(WindowCenter="1e300", WindowWidth="1e-300"),
        rescale=dict(RescaleSlope="1e300", RescaleIntercept="-1e300"),
        zero=dict(RescaleSlope="0", RescaleIntercept="0"),
        spacing=dict(PixelSpacing=["0", "0"]),
    )
    for name, changed in harmless.items():
        yield f"{name}.dcm", dicom_bytes(FILM, **changed), None


def _pixels() -> Cases:
    yield "60000.dcm", dicom_bytes(FILM, Rows=60_000, Columns=60_000), "mega"
    yield "more rows.dcm", dicom_bytes(FILM, Rows=4000, Columns=4000), "shorter"
    yield "fewer rows.dcm", dicom_bytes(FILM, Rows=70), "longer"
    yield "a million frames.dcm", dicom_bytes(FILM, NumberOfFrames=1_000_000), "frame"
    two = FILM.tobytes() * 2
    yield "one frame of two.dcm", dicom_bytes(FILM, NumberOfFrames=1, PixelData=two), "longer"
    yield "no pixels.dcm", dicom_bytes(FILM, PixelData=b""), "shorter"
    start = meta(EXPLICIT) + made.body(FILM)
    endless = element(0x7FE0, 0x10, "OW", FILM.tobytes(), length=0xFFFFFFFE)
    yield "4 GB of pixels.dcm", start + endless, "longer"
    open_end = element(0x7FE0, 0x10, "OW", FILM.tobytes(), length=0xFFFFFFFF)
    yield "pixels without end.dcm", start + open_end, "without a length"
    yield "cut pixels.dcm", dicom_bytes(FILM)[:-100], "cut short"


def _streams() -> Cases:
    def film(syntax, frame, **tags):
        return dicom_bytes(FILM, syntax=syntax, frame=frame, **tags)

    j2k, rle = _encoded(JPEG2000LosslessEncoder), _encoded(RLELosslessEncoder)
    lossless = uid.JPEG2000Lossless
    for share in (30, 60, 90, 99):
        yield f"j2k {share}.dcm", film(lossless, j2k[: len(j2k) * share // 100]), "JPEG 2000"
    size = j2k.index(b"\xff\x51")
    coding = j2k.index(b"\xff\x52")

    def j2k_with(at, form, *values):
        data = bytearray(j2k)
        struct.pack_into(form, data, at, *values)
        return film(lossless, bytes(data))

    yield "j2k 60000.dcm", j2k_with(size + 6, ">II", 60_000, 60_000), ""
    yield "j2k tiles.dcm", j2k_with(size + 22, ">II", 1, 1), "tiles"
    yield "j2k layers.dcm", j2k_with(coding + 6, ">H", 65_535), "layers"
    yield "j2k components.dcm", j2k_with(size + 38, ">H", 16_384), ""
    yield "j2k twice.dcm", film(lossless, j2k * 2), ""
    yield "j2k empty.dcm", film(lossless, b"\xff\x4f\xff\x51"), ""
    yield "rle cut.dcm", film(uid.RLELossless, rle[: len(rle) // 2]), "RLE"
    offsets = struct.pack("<16I", 2, 2**32 - 1, 5, *[0] * 13) + rle[64:]
    yield "rle offsets.dcm", film(uid.RLELossless, offsets), "RLE"
    bomb = struct.pack("<16I", 2, 64, 5_000_064, *[0] * 13) + b"\x81\x07" * 5_000_000
    yield "rle bomb.dcm", film(uid.RLELossless, bomb), "constant"
    many = struct.pack("<16I", 15, *[64] * 15) + rle[64:]
    yield "rle segments.dcm", film(uid.RLELossless, many), "segments"
    jpeg = _saved("JPEG")
    grey = dict(syntax=uid.JPEGBaseline8Bit, bits=8)
    yield "jpeg.dcm", dicom_bytes(GREY, frame=jpeg, **grey), None
    yield "jpeg cut.dcm", dicom_bytes(GREY, frame=jpeg[: len(jpeg) // 2], **grey), "JPEG"
    yield "jpeg larger.dcm", dicom_bytes(GREY, frame=_saved("JPEG", GREY.T), **grey), "differ"
    frames = encapsulate([jpeg, jpeg], has_bot=False)
    yield "jpeg twice.dcm", dicom_bytes(GREY, PixelData=frames, **grey), "frames"
    yield "jpeg none.dcm", dicom_bytes(GREY, PixelData=encapsulate([b"\0\0"]), **grey), ""
    overrun = frames[:12] + struct.pack("<I", 2**31) + frames[16:]
    yield "fragment.dcm", dicom_bytes(GREY, PixelData=overrun, **grey), ""
    levels = np.add.outer(np.arange(16) * 160, np.arange(12) * 100).astype(np.uint16)
    deep = made.jpeg12(levels)
    gap = deep.replace(b"\xff\xc4", b"\0\0", 1)  # GDCM would end the process
    yield "12 bits with a gap.dcm", film(uid.JPEGExtended12Bit, gap), "without a scan"
    yield "jls.dcm", film(uid.JPEGLSLossless, jpeg), ""
    yield "lossless.dcm", film(uid.JPEGLosslessSV1, jpeg), ""


def _others() -> Cases:
    yield "empty.png", b"", "empty"
    yield "page.jpg", b"<html>404</html>", "not a DICOM"
    yield "pointer.png", b"version https://git-lfs.github.com/spec/v1\n", "LFS"
    yield "packed.dcm.gz", b"\x1f\x8b\x08" + bytes(50), "gzip"
    yield "archive.zip", b"PK\x03\x04" + bytes(50), "not a DICOM"
    yield "zeros.dcm", bytes(100_000), "not a DICOM"
    yield "picture.svg", b"<svg><image href='file:///etc/passwd'/></svg>", "not a DICOM"
    yield "script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a DICOM"
    yield "..\\..\\PWNED.png", _saved("PNG"), None
    yield "%2e%2e%2fPWNED.png", _saved("PNG"), None
    yield "$(touch PWNED).png", _saved("PNG"), None
    yield "a\nb.png", _saved("PNG"), None
    yield "x" * 251 + ".png", _saved("PNG"), None


def _special(folder: Path) -> dict[str, str | None]:
    """Make what is no regular file."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "device.png").symlink_to("/dev/zero")
    where = os.getcwd()
    os.chdir(folder)  # a socket's path may have 107 bytes only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
    finally:
        os.chdir(where)
    irregular = dict.fromkeys(("pipe.png", "folder.png", "device.png", "socket.png"), "regular")
    return irregular | dict.fromkeys(("loop.png", "gone.png"), "cannot be read")
