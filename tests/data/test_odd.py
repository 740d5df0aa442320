"""Seventy hard files, real and derived: each is used rightly or refused with its cause.

`pytest -s` prints the table (case, expected, got). A reader of one file cannot see that a PNG is a
lateral or a CT slice: those are read as they are, and not given a lung mask later.
"""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image

from xmae_jax.data.film import FilmError, read_film, read_mask

SZ, NIH, MC = "sz_0013_0.png", "nih_00000001_000.png", "mc_0001_0.png"


class Used:
    """Expect a film: flags, and pixels close to those of a film that it was made from."""

    def __init__(self, *flags, like=None, change=None, error=3.0, kind="", shape=None):
        self.flags, self.like, self.change = flags, like, change or (lambda pixels: pixels)
        self.error, self.kind, self.shape = error, kind, shape

    def __str__(self):
        parts = [f"flags {', '.join(self.flags) or 'none'}"]
        parts += [f"as {self.like}"] * bool(self.like) + [self.kind] * bool(self.kind)
        return "used: " + "; ".join(parts)

    def check(self, path, cxr):
        film = read_film(path)
        assert film.flags == self.flags, film.flags
        assert film.kind.startswith(self.kind), film.kind
        assert self.shape in (None, film.pixels.shape), film.pixels.shape
        if self.like:
            like = self.change(read_film(cxr / self.like).pixels)
            like = cv2.resize(like, film.pixels.shape[::-1], interpolation=cv2.INTER_AREA)
            error = np.abs(film.pixels.astype(int) - like).mean()
            assert error <= self.error, f"differs by {error:.1f} grey levels"
        flags = f" ({', '.join(film.flags)})" if film.flags else ""
        return f"used: {film.kind}, {film.pixels.shape[0]} x {film.pixels.shape[1]}{flags}"


class Refused:
    """Expect a reason with these words."""

    def __init__(self, words):
        self.words = words

    def __str__(self):
        return f"refused: {self.words}"

    def check(self, path, cxr):
        with pytest.raises(FilmError) as caught:
            read_film(path)
        assert self.words in caught.value.reason, caught.value.reason
        return f"refused: {caught.value.reason}"


class Mask:
    """Expect a lung mask of this share of the picture, which equals `like` where that is given."""

    def __init__(self, low, high, like=None, change=None):
        self.low, self.high, self.like = low, high, like
        self.change = change or (lambda mask: mask)

    def __str__(self):
        return f"mask: {self.low:.0%} to {self.high:.0%}" + f" as {self.like}" * bool(self.like)

    def check(self, path, cxr):
        mask = read_mask(path)
        assert self.low <= mask.mean() <= self.high, mask.mean()
        if self.like:
            np.testing.assert_array_equal(mask, self.change(read_mask(cxr / self.like)))
        return f"mask: {mask.mean():.1%} of {mask.shape[0]} x {mask.shape[1]}"


def at_half(path):
    """The grey edge of a resampled mask is cut at half."""
    return np.asarray(Image.open(path).convert("L")) >= 128


LUNGS = f"lung_masks/{MC}"
SZ_FILM, NIH_FILM = f"images/{SZ}", f"images/{NIH}"
LATERAL = Used()
CASES = {
    "derived ünïcode näme with spaces.jpg": Used(like=NIH_FILM, kind="JPEG"),
    "derived_12in16bit.png": Used(like=SZ_FILM, error=12, kind="PNG"),  # stretched
    "derived_17x13.png": Refused("a side shorter than 64 pixels"),
    "derived_1bit_mask.png": Mask(0.1, 0.5, LUNGS),
    "derived_all_black.png": Refused("constant"),
    "derived_all_white.png": Refused("constant"),
    "derived_big_black_border.png": Used(shape=(2048, 2048)),
    "derived_bitflip.png": Refused("damaged"),
    "derived_cmyk.jpg": Used(like=SZ_FILM),
    "derived_cr_stored_values_mono1_16bit.png": Used(
        "inverted", like="dicom/RG1_J2KI.dcm", change=lambda pixels: 255 - pixels, error=60
    ),
    "derived_dicom_named.png": Used(
        "burnt_in_text", like="dicom/RSNA_16d7f894.dcm", error=0, kind="DICOM"
    ),
    "derived_exif_orientation6.jpg": Used(like=SZ_FILM),
    "derived_extreme_aspect.jpg": Used("aspect", shape=(150, 3000)),
    "derived_float32.tif": Used(like=SZ_FILM, error=12, kind="TIFF"),
    "derived_html_404.jpg": Refused("not a DICOM, PNG, JPEG or TIFF"),
    "derived_inverted.png": Used(
        "inverted", like=SZ_FILM, change=lambda pixels: 255 - pixels, error=0
    ),
    "derived_la.png": Used(like=SZ_FILM, error=0),
    "derived_mask_0_1.png": Mask(0.1, 0.5, LUNGS),
    "derived_mask_full.png": Mask(1, 1),
    "derived_mask_halfsize.png": Mask(0.1, 0.5),
    "derived_mask_one_lung.png": Mask(0.05, 0.25),
    "derived_mask_one_pixel.png": Mask(1 / 512**2, 1 / 512**2),
    "derived_mask_rgb_two_lungs.png": Mask(0.1, 0.5, LUNGS),
    "derived_mirrored.png": Used(like=SZ_FILM, change=lambda pixels: pixels[:, ::-1], error=0),
    "derived_palette.png": Used(like=SZ_FILM),
    "derived_progressive.jpg": Used(like=NIH_FILM, kind="JPEG"),
    "derived_rot90.png": Used(like=SZ_FILM, change=np.rot90, error=0),
    "derived_truncated.dcm": Refused("cut short"),
    "derived_truncated.jpg": Refused("truncated"),
    "derived_truncated.png": Refused("truncated"),
    "derived_two_pages.tif": Refused("more than one frame"),
    "derived_zero_bytes.png": Refused("empty"),
    "RG2_JPLY.dcm": Used(
        "body_part", like="dicom/RG2_JLSL.dcm", error=2, kind="DICOM JPEG Extended"
    ),
    "chrJapMulti_CRchest32x32.dcm": Refused("without pixel data"),
    "real_000001-17.jpg": Used(kind="PNG"),
    "real_000001-19.jpg": Used(kind="PNG"),
    "real_000001-9-a.jpg": Used(shape=(360, 428)),
    "real_000002-19-b.jpg": LATERAL,
    "real_000002-7.png": LATERAL,
    "real_000008-8.jpg": Used(kind="PNG"),
    "real_000016.jpg": Used(kind="PNG"),
    "real_16646_1_2.jpg": LATERAL,
    "real_16744_2_1.jpg": Used(shape=(482, 696)),
    "real_16745_3_2.png": Used("burnt_in_text"),
    "real_16745_4_2.png": Used("burnt_in_text"),
    "real_16745_4_2_emptymask.png": Mask(0, 0),
    "real_16751_3_3.jpg": Used(shape=(433, 524)),
    "real_16751_3_3_emptymask.png": Mask(0, 0),
    "real_6278.dcm": Refused("a side shorter than 64 pixels"),
    "real_CR-ModalitySequenceLUT.dcm": Used(kind="DICOM JPEG Lossless", shape=(1576, 1976)),
    "real_J2K_pixelrep_mismatch.dcm": Refused("modality CT"),
    "real_MR_small_bigendian.dcm": Refused("modality MR"),
    "real_MR_truncated.dcm": Refused("modality MR"),
    "real_SC_rgb_small_odd_jpeg.dcm": Refused("a side shorter than 64 pixels"),
    "real_a1a7d22e66f6570df523e0077c6a5a_jumbo.jpeg": LATERAL,
    "real_badVR.dcm": Refused("modality RTDOSE"),
    "real_examples_palette.dcm": Refused("modality US"),
    "real_greymask_CHNCXR_0221_0.png": Mask(0.1, 0.5),
    "real_greymask_MCUCXR_0021_0.png": Mask(0.1, 0.5),
    "real_greymask_MCUCXR_0035_0.png": Mask(0.1, 0.5),
    "real_greymask_MCUCXR_0113_1.png": Mask(0.1, 0.5),
    "real_kjr-21-e24-g001-l-c.jpg": Used(shape=(240, 331)),
    "real_lfs_pointer_00008270_015.png": Refused("Git LFS pointer"),
    "real_liver_1frame.dcm": Refused("modality SEG"),
    "real_meta_missing_tsyntax.dcm": Refused("transfer syntax"),
    "real_notes_mojibake.csv": Refused("not a DICOM, PNG, JPEG or TIFF"),
    "real_pneumocystis-carinii-pneumonia-1-L.jpg": LATERAL,
    "real_rtplan.dcm": Refused("without pixel data"),
    "real_test-SR.dcm": Refused("without pixel data"),
    "real_zipMR.gz": Refused("gzip"),
}


def test_each_case_ends_as_its_table_says(cxr):
    pytest.importorskip("gdcm", reason="some need the extra [dicom]")
    with (cxr / "odd/odd.csv").open(encoding="utf-8") as file:
        names = [row["file"].removeprefix("odd/") for row in csv.DictReader(file)]
    assert sorted(names) == sorted(CASES) and len(CASES) == 70
    wrong = []
    for name in names:
        expected = CASES[name]
        try:
            got = expected.check(cxr / "odd" / name, cxr)
        except (AssertionError, FilmError, pytest.fail.Exception) as error:
            got = f"WRONG: {error}"
            wrong.append(name)
        print(f"{name} | {expected} | {got}")
    assert not wrong


def test_grey_edges_of_masks_are_cut_at_half(cxr):
    for path in (cxr / "odd").glob("real_greymask_*"):
        np.testing.assert_array_equal(read_mask(path), at_half(path))


def test_a_mask_is_no_film(cxr):
    """A mask among the films is flagged or refused."""
    for path in (cxr / "odd").glob("derived_mask_*"):
        try:
            assert "bits" in read_film(path).flags, path.name
        except FilmError as error:
            assert error.reason == "constant picture"


def test_the_first_page_is_the_film_if_asked(cxr):
    film = read_film(cxr / "odd/derived_two_pages.tif", frames="first")
    np.testing.assert_array_equal(film.pixels, read_film(cxr / f"images/{MC}").pixels)


def test_a_modality_lut_and_monochrome1_give_white_bone(cxr):
    pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    film = read_film(cxr / "odd/real_CR-ModalitySequenceLUT.dcm")
    teeth, air = film.pixels[700:900, 700:1300], film.pixels[5:40, 5:200]
    assert teeth.mean() > air.mean() + 60
