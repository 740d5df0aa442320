"""What is unusual about a film is flagged, from its header and from its picture."""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.data.made import dicom
from xmae_jax.data.film import FLAGS, read_film
from xmae_jax.data.looks import is_inverted
from xmae_jax.data.lungs import is_frontal
from xmae_jax.data.text_marks import resized, text_lines

LINES = ("DOE JOHN 12/03/1958", "19580312", "MRN 004512", "Ward 7B", "Smith, Anna")


def chest(size=1024, seed=0):
    """Draw something of a chest film's greys: body, lungs, spine and grain, air around."""
    y, x = np.mgrid[:size, :size] / size
    film = 150 * ((x - 0.5) ** 2 / 0.2 + (y - 0.6) ** 2 / 0.3 < 1)
    for centre in (0.29, 0.71):
        film = np.where((x - centre) ** 2 / 0.02 + (y - 0.47) ** 2 / 0.07 < 1, 70, film)
    film = film + 70 * np.exp(-(((x - 0.5) / 0.06) ** 2)) + 12 * np.sin(90 * y + 8 * x)
    grain = np.random.default_rng(seed).normal(0, 4, film.shape)
    return np.clip(cv2.GaussianBlur(film, (0, 0), size / 200) + 10 + grain, 0, 255).astype(np.uint8)


def written(film, text, *, size, at=(0.05, 0.05), grey=255, box=False):
    """Write a line of text of `size` pixels."""
    picture = Image.fromarray(film.copy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    place = (at[0] * picture.width, at[1] * picture.height)
    if box:
        draw.rectangle(draw.textbbox(place, text, font), fill=255 - grey)
    draw.text(place, text, grey, font)
    return np.asarray(picture)


def has_text(film):
    return bool(text_lines(resized(film)))


@pytest.mark.parametrize(
    ("tags", "flag"),
    [
        ({}, ()),
        (dict(Modality="OT"), ("modality",)),
        (dict(Modality="ZZPHI"), ("modality",)),
        (dict(BodyPartExamined="HIP"), ("body_part",)),
        (dict(ViewPosition="LL"), ("view",)),
        (dict(ViewPosition="AP", BodyPartExamined="PORT CHEST"), ()),
        (dict(ViewPosition="AP AXIAL"), ()),
        (dict(ViewPosition="UNKNOWN", BodyPartExamined="UNDEFINED"), ()),
        (dict(ViewPosition="ZZPHI"), ("view",)),
        (dict(BurnedInAnnotation="YES"), ("burnt_in_text",)),
        (dict(WindowCenter=2000, WindowWidth=100_000), ("bits", "low_contrast")),
        (dict(Modality="OT", ViewPosition="LL"), ("modality", "view")),
    ],
)
def test_flags_of_headers(tmp_path, tags, flag):
    assert read_film(dicom(tmp_path / "a", **tags)).flags == flag


@pytest.mark.parametrize("view", ["L", "LAT", "LATERAL", "LEFT LATERAL", "RAO"])
def test_views_that_are_not_frontal_keep_their_name(tmp_path, view):
    film = read_film(dicom(tmp_path / "a", ViewPosition=view))
    assert film.view == view and film.flags == ("view",) and not is_frontal(film.view)


@pytest.mark.parametrize("view", ["PA", "AP", "AP AXIAL", "PA ERECT", "AP SUPINE", "FRONTAL"])
def test_frontal_views_keep_their_name(tmp_path, view):
    film = read_film(dicom(tmp_path / "a", ViewPosition=view))
    assert film.view == view and film.flags == () and is_frontal(film.view)


@pytest.mark.parametrize(
    ("maker", "vendor"),
    [
        ("FUJIFILM Corporation", "Fujifilm"),
        ("GE Healthcare", "GE"),
        ('"GE MEDICAL SYSTEMS, LLC"', "GE"),
        ("Philips Medical Systems", "Philips"),
        ("SIEMENS", "Siemens"),
        ("Agfa-Gevaert", "Agfa"),
        ("KODAK", "Carestream"),
        ("ZZPHI", ""),
        ("General Hospital", ""),
    ],
)
def test_only_known_vendors_are_named(tmp_path, maker, vendor):
    assert read_film(dicom(tmp_path / "a", Manufacturer=maker)).vendor == vendor


def test_flags_of_pictures(tmp_path):
    film = chest(256)
    pictures = {
        (): film,
        ("aspect",): np.hstack([film] * 3),
        ("bits",): film // 8 * 8,
        ("bits", "low_contrast"): film // 16 + 100,
        ("inverted",): 255 - film,
    }
    for flags, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "a.png")
        assert read_film(tmp_path / "a.png").flags == flags
        assert set(flags) <= set(FLAGS)


def test_one_bit_pictures_are_flagged(tmp_path):
    Image.fromarray(chest(256) > 100).save(tmp_path / "a.png")
    film = read_film(tmp_path / "a.png")
    assert film.bits == 1 and "bits" in film.flags


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("size", [14, 20, 40])
def test_lines_of_text_are_found(text, size):
    film = chest()
    assert not has_text(film)
    white = written(film, text, size=size)
    assert has_text(white)
    line = max(text_lines(white), key=lambda line: line.width)
    assert line.x >= 45 and line.y >= 45 and line.y + line.height < 60 + 1.5 * size
    assert has_text(written(film, text, size=size, at=(0.4, 0.85), grey=0, box=True))
    assert has_text(np.rot90(white).copy())


def test_text_of_large_and_small_films_is_found():
    large = cv2.resize(chest(), (3072, 3072))
    assert has_text(written(large, LINES[0], size=60))
    assert has_text(written(chest(512), LINES[0], size=12))


@pytest.mark.parametrize("marker", ["L", "R", "PA", "AP"])
def test_a_marker_is_no_text(marker):
    assert not has_text(written(chest(), marker, size=60))


def test_noise_and_blank_films_have_no_text():
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8)
    assert not has_text(noise)
    assert not has_text(np.zeros((64, 3000), np.uint8))


def test_inversion_is_seen_at_any_exposure():
    for gamma in (0.5, 1, 2):
        film = np.rint(255 * (chest(256) / 255) ** gamma).astype(np.uint8)
        assert not is_inverted(film) and is_inverted(255 - film)


def test_rates_on_real_films(cxr):
    """The rates that docs/films.md gives: nothing is flagged without cause, little is missed."""
    with (cxr / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["view"] in ("PA", "AP", "AP Supine")]
    texts = inverted = missed = 0
    for row in rows:
        film = read_film(cxr / row["image"])
        texts += "burnt_in_text" in film.flags
        inverted += "inverted" in film.flags
        missed += not is_inverted(255 - film.pixels)
    assert (len(rows), inverted) == (185, 0)
    assert missed <= 4 and 66 <= texts <= 72
