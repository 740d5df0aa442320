"""Films out of every kind of file: the right grey values, or the right reason."""

import csv
import os
import struct
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from xmae_jax.data import film as film_module
from xmae_jax.data.film import FilmError, dicom_ids, read_film, read_mask

RAMP = np.add.outer(np.arange(80) * 20, np.arange(100) * 20).astype(np.uint16)  # 0..3560
CLIP = 6  # grey levels by which clipping a thousandth at each end moves these ramps


def dicom(path, values=RAMP, *, bits=12, **tags):
    """Write an uncompressed CR film; tags replace or add header elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = 8 * values.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME2", "CR"
    dataset.PatientID, dataset.PatientName = "ZZPHI-1", "ZZPHI^NAME"
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


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


def test_window_maps_its_ends_to_black_and_white(tmp_path):
    pixels = grey(dicom(tmp_path / "a", WindowCenter=1500, WindowWidth=1000))
    assert (pixels[RAMP < 1000] == 0).all() and (pixels[RAMP > 2000] == 255).all()
    np.testing.assert_allclose(pixels[RAMP == 1500], 127.5, atol=1)


def test_first_of_several_windows_counts(tmp_path):
    one = grey(dicom(tmp_path / "a", WindowCenter=1500, WindowWidth=1000))
    two = grey(dicom(tmp_path / "b", WindowCenter=[1500, 10], WindowWidth=[1000, 20]))
    np.testing.assert_array_equal(one, two)


def test_rescale_comes_before_the_window(tmp_path):
    plain = grey(dicom(tmp_path / "a", WindowCenter=1500, WindowWidth=1000))
    tags = dict(RescaleSlope=2, RescaleIntercept=-1024, RescaleType="US")
    scaled = grey(dicom(tmp_path / "b", WindowCenter=2 * 1500 - 1024, WindowWidth=2000, **tags))
    np.testing.assert_allclose(plain, scaled, atol=1)


def test_voi_lut_wins_over_the_window(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 12]
    lut.LUTData = np.arange(4095, -1, -1, dtype="<u2").tobytes()
    tags = dict(VOILUTSequence=[lut], WindowCenter=1500, WindowWidth=10)
    pixels = grey(dicom(tmp_path / "a", **tags))
    np.testing.assert_allclose(pixels, 255 - RAMP / 4095 * 255, atol=1)


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    tags = dict(WindowCenter=1500, WindowWidth=1000)
    two = grey(dicom(tmp_path / "a", **tags))
    one = grey(dicom(tmp_path / "b", **tags, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(one, 255 - two)


def test_twelve_bits_without_a_window_use_the_range_of_the_film(tmp_path):
    hot = RAMP.copy()
    hot[0, 0] = 4095  # one hot pixel must not darken the film
    pixels = grey(dicom(tmp_path / "a", hot))
    np.testing.assert_allclose(pixels[1:], (RAMP / RAMP.max() * 255)[1:], atol=CLIP)


def test_eight_bits_without_a_window_are_left_alone(tmp_path, picture):
    dark = (picture // 2 + 7).astype(np.uint8)
    np.testing.assert_array_equal(grey(dicom(tmp_path / "a", dark, bits=8)), dark)


@pytest.mark.parametrize(("centre", "width"), [(5, 0), (5, -5), (60_000, 10)])
def test_a_useless_window_is_passed_over(tmp_path, centre, width):
    film = grey(dicom(tmp_path / "a", WindowCenter=centre, WindowWidth=width))
    np.testing.assert_allclose(film, RAMP / RAMP.max() * 255, atol=CLIP)


def test_header_terms_are_taken_only_if_known(tmp_path):
    known = dict(ViewPosition="PA", PixelSpacing=[0.2, 0.1], StudyInstanceUID="1.2.7")
    film = read_film(dicom(tmp_path / "a", **known))
    assert (film.view, film.modality, film.spacing) == ("PA", "CR", (0.2, 0.1))
    assert film.original_size == RAMP.shape
    assert dicom_ids(tmp_path / "a") == ("ZZPHI-1", "1.2.7") == (film.patient, film.study)
    assert "ZZPHI" not in repr(film)
    for number, (part, chest) in enumerate({"": True, "PORT CHEST": True, "HIP": False}.items()):
        path = dicom(tmp_path / f"part{number}", BodyPartExamined=part)
        assert read_film(path).chest is chest
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
        (dict(PixelData=RAMP.tobytes()[:500]), "damaged"),
        (dict(PixelData=bytes(2 * RAMP.size)), "constant"),
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


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"0")))
    elif name == "pages":
        image.save(path, "TIFF", save_all=True, append_images=[image])
    assert part in reason(path)


def test_all_spellings_of_a_mask_mean_the_same(tmp_path):
    mask = np.zeros((60, 50), bool)
    mask[10:40, 5:20] = mask[12:42, 28:45] = True
    colour = np.zeros((60, 50, 3), np.uint8)
    colour[:, :25, 0], colour[:, 25:, 2] = 255 * mask[:, :25], 255 * mask[:, 25:]
    soft = np.where(mask, 255, 90).astype(np.uint8)  # the grey edge of a resampled mask
    numbered = mask * np.where(np.arange(50) < 25, 1, 2).astype(np.uint8)
    spellings = (mask, mask.astype(np.uint8), mask.astype(np.uint8) * 255, colour, soft, numbered)
    for index, values in enumerate(spellings):
        path = tmp_path / f"{index}.png"
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(read_mask(path), mask, err_msg=str(index))


def test_real_dicom_decodes_to_the_published_values(cxr):
    with (cxr / "dicom/dicom.csv").open() as file:
        for row in csv.DictReader(file):
            dataset = pydicom.dcmread(cxr / row["file"])
            try:
                values = film_module._decode_dicom(dataset)
            except FilmError as error:
                assert "not installed" in error.reason
                continue
            told = [int(row[f"pixel_{name}"]) for name in ("min", "max", "sum")]
            assert [values.min(), values.max(), values.sum(dtype=np.int64)] == told, row["file"]


def test_real_monochrome1_twin_is_the_negative(cxr):
    film = read_film(cxr / "dicom/RSNA_16d7f894.dcm")
    twin = read_film(cxr / "dicom/RSNA_16d7f894_relabelled_MONOCHROME1.dcm")
    assert film.view == "PA" and film.spacing == (0.168, 0.168)
    np.testing.assert_allclose(255 - twin.pixels.astype(int), film.pixels, atol=1)


def test_real_hard_cases_end_as_their_table_says(cxr):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    bad = (
        "derived_17x13 derived_all derived_bitflip derived_html derived_mask_full derived_trunc"
        " derived_two derived_zero RG2_JPLY chrJap odd.csv real_16745_4_2_e real_16751_3_3_e"
        " real_6278 real_J2K real_MR real_SC real_badVR real_examples_pal real_lfs real_liver"
        " real_meta real_notes real_rtplan real_test-SR real_zipMR"
    ).split()
    for path in sorted((cxr / "odd").iterdir()):
        try:
            read_film(path)
            refused = False
        except FilmError:
            refused = True
        assert refused == path.name.startswith(tuple(bad)), path.name
    upright = grey(cxr / "odd/derived_exif_orientation6.jpg")
    same = grey(cxr / "images/sz_0013_0.png")
    assert np.abs(upright - same).mean() < 3
