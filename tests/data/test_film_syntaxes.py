"""Each transfer syntax of CR and DX archives decodes to the stored values; real files too.

Made with what can be written here: pydicom, OpenJPEG and CharLS through it, GDCM, Pillow, and our
own few lines for 12-bit JPEG.
"""

import csv
import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from tests.data import made
from tests.data.made import dicom, dicom_bytes
from xmae_jax.data.dicom_pixels import stored_values
from xmae_jax.data.film import FilmError, read_film

FILM = np.add.outer(np.arange(128) * 16, np.arange(96) * 20).astype(np.uint16)  # 0..3932
GREY = (FILM >> 4).astype(np.uint8)
SIGNED = FILM.astype(np.int16) - 2000


def encoded(syntax, values, *, bits=12, **options):
    """Encode by whichever of pydicom's encoders writes that syntax."""
    pytest.importorskip("openjpeg", reason="needs the extra [dicom]")
    return get_encoder(syntax).encode(
        values.tobytes(),
        rows=values.shape[0],
        columns=values.shape[1],
        samples_per_pixel=1,
        bits_allocated=8 * values.itemsize,
        bits_stored=bits,
        pixel_representation=int(values.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
        **options,
    )


@pytest.mark.parametrize("values", [FILM, SIGNED, GREY], ids=["unsigned", "signed", "8 bits"])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_lossless_syntaxes_give_the_stored_values(tmp_path, syntax, values):
    tags = dict(bits=8 * values.itemsize if values is GREY else 12, syntax=syntax)
    if syntax.is_encapsulated:
        tags["frame"] = encoded(syntax, values, bits=tags["bits"])
    elif syntax == uid.ExplicitVRBigEndian:
        tags["PixelData"] = values.byteswap().tobytes()
    path = dicom(tmp_path / "a", values, **tags)
    stored = stored_values(path)
    np.testing.assert_array_equal(stored, values)
    assert read_film(path).kind == f"DICOM {syntax.name}"


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
@pytest.mark.parametrize("values", [FILM, GREY], ids=["12 bits", "8 bits"])
def test_lossless_jpeg_gives_the_stored_values(tmp_path, kind, values):
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    (tmp_path / "a").write_bytes(made.by_gdcm(dicom_bytes(values), kind))
    np.testing.assert_array_equal(stored_values(tmp_path / "a"), values)


@pytest.mark.parametrize(
    ("syntax", "options", "error"),
    [
        (uid.JPEGLSNearLossless, dict(jls_error=3), 3),
        (uid.JPEG2000, dict(j2k_psnr=[70]), 12),
    ],
    ids=["JPEG-LS", "JPEG 2000"],
)
def test_lossy_syntaxes_stay_close(tmp_path, syntax, options, error):
    frame = encoded(syntax, FILM, **options)
    stored = stored_values(dicom(tmp_path / "a", FILM, syntax=syntax, frame=frame))
    assert 0 < np.abs(stored.astype(int) - FILM).max() <= error


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_eight_bit_jpeg(tmp_path, syntax):
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "JPEG", quality=98)
    frame = buffer.getvalue()
    if syntax == uid.JPEGExtended12Bit:  # the same process but for the name of its frame
        frame = frame.replace(b"\xff\xc0", b"\xff\xc1", 1)
    stored = stored_values(dicom(tmp_path / "a", GREY, syntax=syntax, bits=8, frame=frame))
    np.testing.assert_allclose(stored.astype(int), GREY, atol=2)


def test_twelve_bit_jpeg(tmp_path):
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    levels = np.add.outer(np.arange(12) * 300, np.arange(10) * 50).astype(np.uint16)
    values = np.kron(levels, np.ones((8, 8), np.uint16))
    tags = dict(syntax=uid.JPEGExtended12Bit, frame=made.jpeg12(levels))
    np.testing.assert_array_equal(stored_values(dicom(tmp_path / "a", values, **tags)), values)
    cut = dict(tags, frame=tags["frame"][:-100])
    with pytest.raises(FilmError, match="truncated"):
        stored_values(dicom(tmp_path / "b", values, **cut))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour_becomes_its_luminance(tmp_path, photometric):
    colour = np.stack([GREY, GREY // 2, 255 - GREY], -1)
    expected = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    values, tags = colour, dict(PlanarConfiguration=0)
    if photometric == "YBR_FULL":
        values = np.asarray(Image.fromarray(colour).convert("YCbCr"))
    elif photometric == "PALETTE COLOR":
        values, tags, expected = GREY, {}, 255 - GREY.astype(int)
        for name in ("Red", "Green", "Blue"):
            tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
            tags[f"{name}PaletteColorLookupTableData"] = bytes(range(256))[::-1]
    tags["PhotometricInterpretation"] = photometric
    film = read_film(dicom(tmp_path / "a", values, bits=8, **tags))
    np.testing.assert_allclose(film.pixels.astype(int), expected, atol=2)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
def test_the_first_of_encapsulated_frames(tmp_path, syntax):
    frames = [encoded(syntax, FILM), encoded(syntax, FILM[::-1].copy())]
    tags = dict(syntax=syntax, NumberOfFrames=2, PixelData=encapsulate(frames))
    path = dicom(tmp_path / "a", FILM, **tags)
    np.testing.assert_array_equal(stored_values(path, frames="first"), FILM)
    with pytest.raises(FilmError, match="more than one frame"):
        stored_values(path)


@pytest.mark.parametrize("values", [FILM, SIGNED], ids=["unsigned", "signed"])
def test_unused_bits_of_rle_do_not_count(tmp_path, values):
    """Retired overlays lie in the bits above the stored ones."""
    dirty = (values.view(np.uint16) & 0x0FFF) | 0xA000
    tags = dict(syntax=uid.RLELossless, frame=encoded(uid.RLELossless, dirty, bits=16))
    np.testing.assert_array_equal(stored_values(dicom(tmp_path / "a", values, **tags)), values)


def test_a_frame_in_several_fragments(tmp_path):
    frame = encoded(uid.JPEG2000Lossless, FILM)
    data = encapsulate([frame], fragments_per_frame=4)
    path = dicom(tmp_path / "a", FILM, syntax=uid.JPEG2000Lossless, PixelData=data)
    np.testing.assert_array_equal(stored_values(path), FILM)


def test_an_offset_table_of_the_fragments_of_one_frame(tmp_path):
    frame = encoded(uid.JPEG2000Lossless, FILM)
    half = len(frame) // 4 * 2
    data = encapsulate([frame[:half], frame[half:]], has_bot=True)
    path = dicom(tmp_path / "a", FILM, syntax=uid.JPEG2000Lossless, PixelData=data)
    np.testing.assert_array_equal(stored_values(path), FILM)


@pytest.mark.parametrize("values", [FILM, SIGNED], ids=["unsigned", "signed"])
def test_rle_values_above_bit_zero(tmp_path, values):
    frame = encoded(uid.RLELossless, values << 4, bits=16)
    tags = dict(syntax=uid.RLELossless, frame=frame, HighBit=15)
    np.testing.assert_array_equal(stored_values(dicom(tmp_path / "a", values, **tags)), values)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_other_compressed_values_above_bit_zero_are_refused(tmp_path, syntax):
    tags = dict(syntax=syntax, HighBit=15)
    high = dicom(tmp_path / "a", FILM, frame=encoded(syntax, FILM << 4, bits=16), **tags)
    with pytest.raises(FilmError, match="HighBit"):
        stored_values(high)
    # A stream of as many bits as are stored has none to shift; the header is wrong.
    path = dicom(tmp_path / "b", FILM, frame=encoded(syntax, FILM), **tags)
    np.testing.assert_array_equal(stored_values(path), FILM)


def test_a_bare_data_set_is_read(tmp_path):
    data = dicom_bytes(FILM, syntax=uid.ImplicitVRLittleEndian)
    group = data.index(b"\x08\x00\x16\x00")  # SOPClassUID, the first after the file meta
    (tmp_path / "a").write_bytes(data[group:])
    np.testing.assert_array_equal(stored_values(tmp_path / "a"), FILM)


def rows(cxr):
    with (cxr / "dicom/dicom.csv").open() as file:
        return list(csv.DictReader(file))


def test_real_files_decode_to_the_published_values(cxr):
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    for row in rows(cxr):
        values = stored_values(cxr / row["file"])
        told = [int(row[f"pixel_{name}"]) for name in ("min", "max", "sum")]
        assert [values.min(), values.max(), values.sum(dtype=np.int64)] == told, row["file"]


def test_real_twelve_bit_jpeg_is_its_lossless_twin(cxr):
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    twin = stored_values(cxr / "dicom/RG2_JLSL.dcm").astype(int)
    error = stored_values(cxr / "odd/RG2_JPLY.dcm") - twin  # compressed to a 36th
    assert np.std(error) < 6 and abs(error.mean()) < 1


def test_real_monochrome1_twins_are_the_same_film(cxr, tmp_path):
    """Invert each real file's values and its header; the film has to stay."""
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    for row in rows(cxr):
        film = read_film(cxr / row["file"])
        twin = pydicom.dcmread(cxr / row["file"])
        values = stored_values(cxr / row["file"])
        top = 2 ** int(row["bits_stored"]) - 1
        was = row["photometric"]
        twin.PhotometricInterpretation = "MONOCHROME" + ("1" if was == "MONOCHROME2" else "2")
        twin.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        twin.PixelData = (top - values.astype(int)).astype(values.dtype).tobytes()
        twin["PixelData"].is_undefined_length = False
        if row["window_center"]:
            twin.WindowCenter = top + 1 - int(row["window_center"])
        twin.save_as(tmp_path / "twin", enforce_file_format=True)
        other = read_film(tmp_path / "twin")
        error = np.abs(film.pixels.astype(int) - other.pixels)
        assert error.max() <= 1, (row["file"], error.max())


def test_real_file_with_a_false_header_is_its_negative_and_flagged(cxr):
    film = read_film(cxr / "dicom/RSNA_16d7f894.dcm")
    twin = read_film(cxr / "dicom/RSNA_16d7f894_relabelled_MONOCHROME1.dcm")
    np.testing.assert_allclose(255 - twin.pixels.astype(int), film.pixels, atol=1)
    assert "inverted" in twin.flags and "inverted" not in film.flags
