"""Films out of every kind of file: the right grey values, or the right reason."""

import os
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from tests.data import made
from tests.data.made import RAMP, dicom
from xmae_jax.data import png as png_module
from xmae_jax.data.film import FilmError, dicom_ids, read_film, read_mask

CLIP = 6  # grey levels by which clipping a thousandth at each end moves these ramps


def grey(path):
    return read_film(path).pixels.astype(int)


def reason(path):
    with pytest.raises(FilmError) as caught:
        read_film(path)
    assert "ZZPHI" not in str(caught.value)
    return caught.value.reason


@pytest.fixture
def picture():
    """Return a film-like ramp of 8 bits that no turn or flip leaves as it is."""
    return (np.add.outer(np.arange(90) * 2, np.arange(70))).clip(0, 255).astype(np.uint8)


def test_header_terms_are_taken_only_if_known(tmp_path):
    known = dict(ViewPosition="PA", PixelSpacing=[0.2, 0.2], StudyInstanceUID="1.2.7")
    film = read_film(dicom(tmp_path / "a", **known))
    assert (film.view, film.modality, film.spacing) == ("PA", "CR", (0.2, 0.2))
    assert (film.original_size, film.bits) == (RAMP.shape, 12)
    assert film.stored_size == RAMP.shape
    assert film.kind == "DICOM Explicit VR Little Endian"
    assert dicom_ids(tmp_path / "a") == ("ZZPHI-1", "1.2.7") == (film.patient, film.study)
    assert "ZZPHI" not in repr(film)
    chests = ("", "PORT CHEST", "TORAX", "TORACE", "TORAKS", "THORAX", "CXR", "LUNGS", "RIBS")
    chests += ("UNKNOWN", "UNDEFINED", "DEFAULT", "OTHER")
    parts = dict.fromkeys(chests, True) | dict.fromkeys(("HIP", "TSPINE", "COLUNA TORACICA"), False)
    for number, (part, chest) in enumerate(parts.items()):
        path = dicom(tmp_path / f"part{number}", BodyPartExamined=part)
        assert read_film(path).chest is chest, part
    odd = read_film(dicom(tmp_path / "b", ViewPosition="ZZPHI", Modality="ZZPHI"))
    assert (odd.view, odd.modality) == ("", "")
    assert np.isnan(odd.spacing).all()


@pytest.mark.parametrize(
    ("tags", "part"),
    [
        (dict(Modality="CT"), "modality CT"),
        (dict(NumberOfFrames=2, PixelData=2 * RAMP.tobytes()), "more than one frame"),
        (dict(Rows=20_000, Columns=20_000), "megapixels"),
        (dict(Rows=63, Columns=100), "shorter than 64"),
        (dict(PixelData=RAMP.tobytes()[:500]), "shorter than the header"),
        (dict(PixelData=bytes(2 * RAMP.size)), "constant"),
        (dict(PixelData=RAMP.tobytes() * 2), "longer than the header"),
        (dict(PixelData=RAMP.tobytes() + bytes(2500)), "longer than the header"),
    ],
)
def test_dicom_that_is_no_single_film_is_refused(tmp_path, tags, part):
    assert part in reason(dicom(tmp_path / "a", **tags))


def test_dicom_without_pixels_is_refused(tmp_path):
    path = dicom(tmp_path / "a")
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert "without pixel data" in reason(path)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize(
    "keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation"]
)
def test_elements_that_cannot_be_guessed_are_named(tmp_path, keyword, empty):
    assert (
        reason(changed(dicom(tmp_path / "a"), keyword, empty=empty))
        == f"DICOM header without {keyword}"
    )


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize(
    "keyword", ["SamplesPerPixel", "PixelRepresentation", "HighBit", "NumberOfFrames"]
)
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_elements_with_a_usual_value_may_be_missing(tmp_path, keyword, empty, syntax):
    path = dicom(tmp_path / "a")
    expected = grey(path)
    if syntax == uid.RLELossless:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    np.testing.assert_array_equal(grey(changed(path, keyword, empty=empty)), expected)


def test_colours_without_a_planar_configuration_lie_pixel_by_pixel(tmp_path):
    colour = np.stack([RAMP // 16] * 3, -1).astype(np.uint8)
    tags = dict(bits=8, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    path = dicom(tmp_path / "a", colour, **tags)
    expected = grey(path)
    np.testing.assert_array_equal(grey(changed(path, "PlanarConfiguration", empty=False)), expected)


def changed(path, keyword, *, empty):
    """Empty an element, or leave it out."""
    dataset = pydicom.dcmread(path)
    if empty:
        setattr(dataset, keyword, None)
    elif keyword in dataset:
        delattr(dataset, keyword)
    dataset.save_as(path)
    return path


def test_bytes_after_the_last_row_are_passed_over(tmp_path):
    for extra in (2, 512, 1900):
        padded = dicom(tmp_path / "a", PixelData=RAMP.tobytes() + b"\x11" * extra)
        np.testing.assert_array_equal(grey(padded), grey(dicom(tmp_path / "b")))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_large_values_before_the_pixels_are_skipped(tmp_path, syntax):
    path = dicom(tmp_path / "a", syntax=syntax)
    expected = grey(path)
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x2001, "MAKER", create=True)
    block.add_new(1, "OB", bytes(20 << 20))
    dataset.add_new(0x60003000, "OW", bytes(5 << 20))
    dataset.add_new(0x00102110, "UT", "ZZPHI" * 300_000)
    dataset.save_as(path)
    np.testing.assert_array_equal(grey(path), expected)


def test_large_lookup_tables_are_not_skipped(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [0, 0, 16], np.arange(65536, dtype="<u2")[::-1].tobytes()
    path = dicom(tmp_path / "a", RAMP * 16, bits=16, VOILUTSequence=[table] * 3)
    np.testing.assert_allclose(grey(path), 255 - RAMP * 16 / 257, atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_modes_of_pictures_give_the_same_film(tmp_path, picture, mode):
    image = Image.fromarray(picture)
    if mode == "P":  # a palette that is no ramp, as some archives have
        image = Image.fromarray(255 - picture, "P")
        image.putpalette([level for index in range(256) for level in 3 * [255 - index]])
    elif mode != "L":
        image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    suffix = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"a.{suffix}"
    image.save(path, quality=98)
    np.testing.assert_allclose(grey(path), picture, atol=3 if mode == "CMYK" else 0)


def test_transparent_pixels_keep_their_grey(tmp_path, picture):
    alpha = np.zeros_like(picture)
    Image.fromarray(np.stack([picture] * 3 + [alpha], -1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), picture)


@pytest.mark.parametrize(("scale", "suffix"), [(16, "png"), (256, "png"), (16, "tif")])
def test_sixteen_bits_are_scaled_by_the_range_in_use(tmp_path, picture, scale, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture.astype(np.uint16) * scale).save(path)
    np.testing.assert_allclose(grey(path), picture / picture.max() * 255, atol=CLIP)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_keeps_its_depth(tmp_path, picture, channels):
    """Pillow would keep the upper 8 bits, of which a 12-bit film has almost none."""
    deep = picture.astype(np.uint16) * 10
    layers = [deep] * (channels if channels == 3 else channels - 1)
    if channels != 3:
        layers.append(np.full_like(deep, 65535))
    rows = np.stack(layers, -1).astype(">u2").view(np.uint8)
    rows = made.pixels_chunk(rows.reshape(len(picture), -1))
    colour = {2: 4, 3: 2, 4: 6}[channels]
    data = made.png(picture.shape[1], picture.shape[0], rows, depth=16, colour=colour)
    (tmp_path / "a.png").write_bytes(data)
    film = read_film(tmp_path / "a.png")
    assert film.bits == 16
    np.testing.assert_allclose(film.pixels, picture / picture.max() * 255, atol=CLIP)


def test_white_is_zero_in_some_tiffs(tmp_path, picture):
    for values in (picture, picture.astype(np.uint16) * 16):
        Image.fromarray(values).save(tmp_path / "a.tif")
        data = (tmp_path / "a.tif").read_bytes()
        assert data.count(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01") == 1  # black is zero
        (tmp_path / "b.tif").write_bytes(
            data.replace(b"\x06\x01\x03\x00\x01\0\0\0\x01", b"\x06\x01\x03\x00\x01\0\0\0\0")
        )
        np.testing.assert_array_equal(grey(tmp_path / "b.tif"), 255 - grey(tmp_path / "a.tif"))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_every_exif_turn_is_undone(tmp_path, picture, turn, suffix):
    stored = picture.T if turn > 4 else picture
    if turn in (2, 3, 7, 8):
        stored = stored[:, ::-1]
    if turn in (3, 4, 6, 7):
        stored = stored[::-1]
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    options = dict(tiffinfo={274: turn}) if suffix == "tif" else dict(exif=exif)
    Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=100, **options)
    np.testing.assert_allclose(grey(path), picture, atol=3)


@pytest.mark.parametrize("missing", [0, 1, 20])
@pytest.mark.parametrize("interlace", [0, 1])
def test_missing_rows_of_a_png_are_seen(tmp_path, picture, missing, interlace):
    """Pillow leaves rows that the data do not reach black."""
    dark = np.where(np.arange(len(picture))[:, None] < 60, picture, 0).astype(np.uint8)
    steps = png_module.PASSES if interlace else ((0, 0, 1, 1),)
    raw = b"".join(np.pad(dark[y::v, x::h], ((0, 0), (1, 0))).tobytes() for x, y, h, v in steps)
    raw = raw[: len(raw) - missing]
    chunks = made.png_chunk(b"IDAT", zlib.compress(raw)), made.png_chunk(b"IEND", b"")
    data = made.png(dark.shape[1], dark.shape[0], *chunks, interlace=interlace)
    (tmp_path / "a.png").write_bytes(data)
    if missing:
        assert "truncated" in reason(tmp_path / "a.png")
    else:
        np.testing.assert_array_equal(grey(tmp_path / "a.png"), dark)


def test_a_jpeg_that_the_decoder_mends_is_refused(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 40] = b"\xff\x00" * 20
    (tmp_path / "a.jpg").write_bytes(data)
    np.asarray(Image.open(tmp_path / "a.jpg"))  # Pillow says nothing
    assert "damaged" in reason(tmp_path / "a.jpg")


def test_float_tiff_is_scaled_and_nan_refused(tmp_path, picture):
    values = picture.astype(np.float32) / 300
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), picture / picture.max() * 255, atol=CLIP)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    assert "not finite" in reason(tmp_path / "b.tif")


def test_exif_turn_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying; to be turned clockwise
    lying = np.rot90(picture)
    Image.fromarray(lying).save(tmp_path / "a.jpg", quality=100, exif=exif)
    film = read_film(tmp_path / "a.jpg")
    assert film.original_size == picture.shape
    np.testing.assert_allclose(film.pixels.astype(int), picture, atol=3)


def test_content_counts_not_the_name(tmp_path, picture):
    dicom(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.dcm", "PNG")
    assert read_film(tmp_path / "a.png").modality == "CR"
    np.testing.assert_array_equal(grey(tmp_path / "b.dcm"), picture)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("empty", "empty"),
        ("html", "not a DICOM"),
        ("lfs", "LFS"),
        ("pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("absent", "cannot be read"),
        ("constant", "constant"),
        ("small", "shorter than 64"),
        ("cut jpeg", "truncated"),
        ("flipped png", "damaged"),
        ("bomb", "megapixels"),
        ("pages", "more than one frame"),
    ],
)
def test_what_is_no_film_is_refused_with_its_cause(tmp_path, picture, name, part):
    path = tmp_path / "ZZPHI.png"
    image = Image.fromarray(picture)
    if name == "empty":
        path.touch()
    elif name == "html":
        path.write_text("<html>ZZPHI</html>")
    elif name == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "constant":
        Image.new("L", (100, 100), 9).save(path)
    elif name == "small":
        image.crop((0, 0, 63, 80)).save(path)
    elif name == "cut jpeg":
        image.resize((900, 900)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "flipped png":
        image.save(path)
        data = bytearray(path.read_bytes())
        data[data.index(b"IDAT") + 40] ^= 1
        path.write_bytes(data)
    elif name == "bomb":
        path.write_bytes(made.png(12_000, 12_000, made.png_chunk(b"IDAT", b"0")))
    elif name == "pages":
        image.save(path, "TIFF", save_all=True, append_images=[image])
    assert part in reason(path)


def test_all_spellings_of_a_mask_mean_the_same(tmp_path):
    mask = np.zeros((60, 50), bool)
    mask[10:40, 5:20] = mask[12:42, 28:45] = True
    colour = np.zeros((60, 50, 3), np.uint8)
    colour[:, :25, 0], colour[:, 25:, 2] = 255 * mask[:, :25], 255 * mask[:, 25:]
    # The grey edges of a resampled mask, as bright as is usual, and darker.
    soft = np.where(mask, 255 - np.arange(50), 2 * np.arange(50)).astype(np.uint8)
    spellings = [mask, mask.astype(np.uint8), mask.astype(np.uint8) * 255, colour, soft, soft // 3]
    labels = ((1, 2), (127, 255), (100, 200), (85, 170), (64, 128), (8, 8), (127, 127), (9, 20))
    for pair in labels:
        spellings.append(mask * np.where(np.arange(50) < 25, *pair).astype(np.uint8))
    for index, values in enumerate(spellings):
        path = tmp_path / f"{index}.png"
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(read_mask(path), mask, err_msg=str(index))
