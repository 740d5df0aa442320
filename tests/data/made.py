"""Make films of every kind, and the pieces of broken ones, for the tests of reading."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

RAMP = np.add.outer(np.arange(80) * 20, np.arange(100) * 20).astype(np.uint16)  # 0..3560
CR = "1.2.840.10008.5.1.4.1.1.1"


def header(values, *, bits=12, syntax=uid.ExplicitVRLittleEndian, **tags) -> Dataset:
    """Return the data set of a CR film without pixels; tags replace or add elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CR
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else values.shape[2]
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.BitsAllocated = 8 * values.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME2", "CR"
    dataset.PatientID, dataset.PatientName = "ZZPHI-1", "ZZPHI^NAME"
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(values=RAMP, *, frame=None, **tags) -> bytes:
    """Return a CR film as a file: uncompressed, or with an encoded `frame` in a fragment."""
    dataset = header(values, **tags)
    if "PixelData" not in tags:
        dataset.PixelData = values.tobytes() if frame is None else encapsulate([frame])
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(path, values=RAMP, **tags) -> Path:
    """Write what dicom_bytes returns."""
    Path(path).write_bytes(dicom_bytes(values, **tags))
    return Path(path)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth=8, colour=0, interlace=0) -> bytes:
    """Return a PNG of that size with those chunks, whatever these hold."""
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + b"".join(chunks)


def pixels_chunk(values) -> bytes:
    """Return the IDAT and IEND chunks of 8-bit values."""
    rows = np.pad(values, ((0, 0), (1, 0)))
    return png_chunk(b"IDAT", zlib.compress(rows.tobytes())) + png_chunk(b"IEND", b"")


def element(group: int, number: int, vr: str, value: bytes, *, length: int | None = None) -> bytes:
    """Return a DICOM element in explicit VR, little endian; its length may lie."""
    tag = struct.pack("<HH", group, number) + vr.encode()
    size = len(value) if length is None else length
    if vr in ("OB", "OW", "SQ", "UN", "OF"):
        return tag + struct.pack("<HI", 0, size) + value
    return tag + struct.pack("<H", size) + value


def zeros(megabytes: int) -> bytes:
    """Return part of a raw deflate stream that inflates to so many MiB of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes  # after a full flush, the same bytes mean the same again


def deflated(*parts: bytes) -> bytes:
    """Return a raw deflate stream of bytes to pack, parts that are packed being `Packed`."""
    stream = b""
    for part in parts:
        if isinstance(part, Packed):
            stream += part
        else:
            packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
            stream += packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    return stream + b"\x03\x00"  # an empty last block


class Packed(bytes):
    """Bytes of a deflate stream, as `zeros` makes them."""


def meta(syntax: str) -> bytes:
    """Return the preamble and file meta information of a DICOM file."""
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    body = element(2, 0x10, "UI", name)
    return bytes(128) + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(body))) + body


def body(values, *, bits=16) -> bytes:
    """Return a film's elements up to the pixels, explicit VR, little endian."""
    number = [1, *values.shape, 8 * values.itemsize, bits, bits - 1, 0]
    samples, rows, columns, *depth = (struct.pack("<H", value) for value in number)
    image = element(0x28, 2, "US", samples) + element(0x28, 4, "CS", b"MONOCHROME2 ")
    image += element(0x28, 0x10, "US", rows) + element(0x28, 0x11, "US", columns)
    for index, value in enumerate(depth):
        image += element(0x28, 0x100 + index, "US", value)
    return element(8, 0x60, "CS", b"CR") + image


def jpeg12(blocks) -> bytes:
    """Encode a 12-bit extended JPEG in which each value fills a block of 8 x 8 pixels.

    Such a picture has no waves: each block is the difference of its level from the one before, as
    a category, in a Huffman code of fixed length, and its bits (ISO/IEC 10918-1, F.1.2.1).
    """
    height, width = blocks.shape
    quantisation = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    frame = b"\xff\xc1" + struct.pack(">HBHHB", 11, 12, 8 * height, 8 * width, 1) + b"\x01\x11\0"
    levels = bytes([0, 0, 0, 0, 16] + [0] * 11) + bytes(range(16))  # 5-bit codes: the category
    waves = bytes([1] + [0] * 15) + b"\0"  # the code 0: no more waves
    tables = b"\xff\xc4" + struct.pack(">H", 3 + len(levels)) + b"\x00" + levels
    tables += b"\xff\xc4" + struct.pack(">H", 3 + len(waves)) + b"\x10" + waves
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    bits, before = "", 0
    for level in (8 * (blocks.astype(int).ravel() - 2048)).tolist():
        step, before = level - before, level
        size = abs(step).bit_length()
        code = step if step > 0 else step + (1 << size) - 1
        bits += f"{size:05b}" + (f"{code:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + quantisation + frame + tables + scan + data + b"\xff\xd9"


def by_gdcm(film: bytes, kind: str) -> bytes:
    """Compress a DICOM file by GDCM, the only one here to write lossless JPEG."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/film"
        Path(path).write_bytes(film)
        reader = gdcm.ImageReader()
        reader.SetFileName(path)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(path)
        assert writer.Write()
        return Path(path).read_bytes()
