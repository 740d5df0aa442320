"""DICOM values to grey: modality LUT, then VOI LUT or window, then MONOCHROME1, then padding."""

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from tests.data.made import RAMP, dicom
from xmae_jax.data.film import FilmError, read_deep, read_film

CLIP = 6  # grey levels by which clipping a thousandth at each end moves these ramps


def grey(path, **options):
    return read_film(path, **options).pixels.astype(int)


def by_the_standard(x, centre, width, function):
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255."""
    x = x.astype(float)
    if function == "LINEAR":
        y = (x - (centre - 0.5)) / (width - 1) + 0.5
    elif function == "LINEAR_EXACT":
        y = (x - centre) / width + 0.5
    else:
        y = 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -99, 99)))
    return np.rint(255 * np.clip(y, 0, 1))


def lut(first, values, bits=16):
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = np.asarray(values, "<u2").tobytes()
    return item


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(1500, 1000), (1500.5, 2), (300.5, 2), (300, 9)])
def test_windows_are_those_of_the_standard(tmp_path, function, centre, width):
    fine = np.add.outer(np.arange(64), np.arange(64) + 250).astype(np.uint16)
    values = np.hstack([RAMP[:64], fine])
    tags = dict(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    film = grey(dicom(tmp_path / "a", values, **tags))
    np.testing.assert_allclose(film, by_the_standard(values, centre, width, function), atol=1)


def test_linear_windows_differ_by_their_half_steps(tmp_path):
    values = np.tile(np.arange(64, dtype=np.uint16), (64, 1))
    tags = dict(WindowCenter=32, WindowWidth=5)
    linear = grey(dicom(tmp_path / "a", values, **tags))
    exact = grey(dicom(tmp_path / "b", values, **tags, VOILUTFunction="LINEAR_EXACT"))
    assert linear[0, 28:36].tolist() == [0, 0, 32, 96, 159, 223, 255, 255]
    np.testing.assert_allclose(
        exact[0, 28:36], [0, 0, 25.5, 76.5, 127.5, 178.5, 229.5, 255], atol=1
    )


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


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_negative_rescale_slope_inverts_once(tmp_path, function, photometric):
    tags = dict(RescaleSlope=-1, RescaleIntercept=4095, RescaleType="US")
    tags |= dict(WindowCenter=2500, WindowWidth=1500, VOILUTFunction=function)
    film = grey(dicom(tmp_path / "a", PhotometricInterpretation=photometric, **tags))
    expected = by_the_standard(4095 - RAMP.astype(int), 2500, 1500, function)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(film, expected, atol=1)


@pytest.mark.parametrize(
    ("text", "function"),
    [("", "LINEAR"), (["SIGMOID", "LINEAR"], "SIGMOID"), (["", "SIGMOID"], "LINEAR")],
)
def test_the_first_voi_lut_function_counts_and_a_blank_one_is_linear(tmp_path, text, function):
    tags = dict(WindowCenter=1500, WindowWidth=9, VOILUTFunction=text)
    film = grey(dicom(tmp_path / "a", RAMP // 20 + 1450, **tags))
    expected = by_the_standard(RAMP // 20 + 1450, 1500, 9, function)
    np.testing.assert_allclose(film, expected, atol=1)


@pytest.mark.parametrize("tags", [dict(RescaleSlope=""), dict(RescaleIntercept="")])
def test_an_empty_rescale_is_passed_over(tmp_path, tags):
    window = dict(WindowCenter=1500, WindowWidth=1000)
    tags = dict(RescaleSlope="2", RescaleIntercept="7", RescaleType="US") | tags
    film = grey(dicom(tmp_path / "a", **tags, **window))
    np.testing.assert_array_equal(film, grey(dicom(tmp_path / "b", **window)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("size", "first", "bits"),
    [
        (4096, 0, 8),
        (256, 0, 8),
        (1024, 500, 8),
        (4096, -2048, 16),
        (2048, 1000, 12),
        (65536, 0, 16),
    ],
)
@pytest.mark.parametrize("form", ["OW", "US", "packed", "big endian"])
def test_voi_luts_of_every_form(tmp_path, size, first, bits, form, photometric):
    curve = np.rint(np.linspace(0, 1, size) ** 2 * (2**bits - 1)).astype(int)
    item, data = Dataset(), curve.astype(">u2" if form == "big endian" else "<u2").tobytes()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [size % 2**16, first, bits])
    if form == "US" and size <= 4096:
        item.add_new("LUTData", "US", curve.tolist())
    elif form == "packed" and bits == 8:
        item.add_new("LUTData", "OW", curve.astype(np.uint8).tobytes())
    else:
        item.add_new("LUTData", "OW", data)
    tags = dict(VOILUTSequence=[item], PhotometricInterpretation=photometric)
    values = RAMP.astype(np.int16) - 1800 if first < 0 else RAMP * (16 if size == 65536 else 1)
    if form == "big endian":
        tags |= dict(syntax=uid.ExplicitVRBigEndian, PixelData=values.byteswap().tobytes())
    film = grey(dicom(tmp_path / "a", values, bits=16, **tags))
    expected = curve[np.clip(values.astype(int) - first, 0, size - 1)] * (255 / (2**bits - 1))
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(film, expected, atol=1)


def test_a_voi_lut_of_sixteen_bits_keeps_them(tmp_path):
    curve = np.linspace(0, 65535, 4096).astype(int)
    path = dicom(tmp_path / "a", VOILUTSequence=[lut(0, curve)])
    np.testing.assert_array_equal(read_deep(path), curve[RAMP])


@pytest.mark.parametrize("descriptor", [[4096, 0, 7], [4096, 0, 17], [9000, 0, 12], [4096, 0]])
def test_a_broken_voi_lut_gives_way_to_the_window(tmp_path, descriptor):
    broken = lut(0, np.arange(4096), 12)
    broken.LUTDescriptor = descriptor
    window = dict(WindowCenter=1500, WindowWidth=1000)
    film = grey(dicom(tmp_path / "a", VOILUTSequence=[broken], **window))
    np.testing.assert_array_equal(film, grey(dicom(tmp_path / "b", **window)))


def test_a_broken_modality_lut_is_refused(tmp_path):
    broken = lut(0, np.arange(4096), 17)
    with pytest.raises(FilmError, match="broken table in ModalityLUTSequence"):
        read_film(dicom(tmp_path / "a", ModalityLUTSequence=[broken]))


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


@pytest.mark.parametrize(
    ("centre", "width", "function"),
    [
        *((5, 0, "LINEAR"), (5, -5, "LINEAR"), (60_000, 10, "LINEAR"), (1500, 1, "LINEAR")),
        *((5, 0, "SIGMOID"), (5, -5, "LINEAR_EXACT"), (1500, 1000, "ZZPHI")),
    ],
)
def test_a_useless_window_is_passed_over(tmp_path, centre, width, function):
    tags = dict(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    film = grey(dicom(tmp_path / "a", **tags))
    np.testing.assert_allclose(film, RAMP / RAMP.max() * 255, atol=CLIP)


def test_eight_bits_without_a_window_are_left_alone(tmp_path):
    dark = (RAMP // 30 + 7).astype(np.uint8)
    np.testing.assert_array_equal(grey(dicom(tmp_path / "a", dark, bits=8)), dark)


def test_a_modality_lut_comes_before_the_window(tmp_path):
    table = np.arange(4096)[::-1] // 4  # inverts, and 12 bits to 10
    tags = dict(ModalityLUTSequence=[lut(0, table)], WindowCenter=512, WindowWidth=1024)
    film = grey(dicom(tmp_path / "a", **tags))
    np.testing.assert_allclose(film, by_the_standard(table[RAMP], 512, 1024, "LINEAR"), atol=1)


def test_a_modality_lut_comes_before_a_voi_lut(tmp_path):
    modality = dict(ModalityLUTSequence=[lut(0, np.arange(4096) // 4)])
    curve = np.rint(np.linspace(0, 1, 1024) ** 2 * 65535)
    film = grey(dicom(tmp_path / "a", **modality, VOILUTSequence=[lut(0, curve)]))
    np.testing.assert_allclose(film, curve[RAMP // 4] / 257, atol=1)


def test_a_voi_lut_clips_outside_its_range(tmp_path):
    table = np.linspace(0, 65535, 1000).astype(int)
    film = grey(dicom(tmp_path / "a", VOILUTSequence=[lut(1000, table)]))
    assert (film[RAMP < 1000] == 0).all() and (film[RAMP >= 2000] == 255).all()


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_with_a_rescale(tmp_path, bits):
    values = (RAMP.astype(np.int16) - 2000) * (8 if bits == 16 else 1)
    tags = dict(RescaleSlope="0.5", RescaleIntercept="100", RescaleType="US")
    window = dict(WindowCenter=100, WindowWidth=1000)
    film = grey(dicom(tmp_path / "a", values, bits=bits, **tags, **window))
    expected = by_the_standard(values * 0.5 + 100, 100, 1000, "LINEAR")
    np.testing.assert_allclose(film, expected, atol=1)


def test_unused_bits_and_values_above_bit_zero(tmp_path):
    tags = dict(WindowCenter=2048, WindowWidth=4096)
    plain = grey(dicom(tmp_path / "a", **tags))
    overlay = grey(dicom(tmp_path / "b", RAMP | 0xA000, **tags))  # retired overlays lie there
    np.testing.assert_array_equal(plain, overlay)
    high = dicom(tmp_path / "c", (RAMP << 4).astype(np.uint16), HighBit=15, **tags)
    np.testing.assert_array_equal(plain, grey(high))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 3990])
def test_padding_is_black_and_does_not_widen_the_range(tmp_path, photometric, limit):
    values = RAMP // 4 + 500
    values[:, :20] = 4000 if limit is None else np.arange(3990, 4010) // 2 * 2
    film = grey(
        dicom(
            tmp_path / "a",
            values,
            PhotometricInterpretation=photometric,
            PixelPaddingValue=4000 if limit is None else 4010,
            **({} if limit is None else dict(PixelPaddingRangeLimit=limit)),
        )
    )
    assert (film[:, :20] == 0).all()
    seen = (values[:, 20:] - values[:, 20:].min()) / np.ptp(values[:, 20:]) * 255
    expected = 255 - seen if photometric == "MONOCHROME1" else seen
    np.testing.assert_allclose(film[:, 20:], expected, atol=CLIP)


def test_padding_that_covers_the_film_is_passed_over(tmp_path):
    tags = dict(PixelPaddingValue=0, PixelPaddingRangeLimit=4095)
    np.testing.assert_array_equal(grey(dicom(tmp_path / "a", **tags)), grey(dicom(tmp_path / "b")))


@pytest.mark.parametrize(
    ("tags", "shape", "spacing"),
    [
        (dict(PixelAspectRatio=["2", "1"]), (160, 100), None),
        (dict(PixelAspectRatio=["3", "4"]), (80, 133), None),
        (dict(PixelSpacing=["0.3", "0.2"]), (120, 100), 0.2),
        (dict(ImagerPixelSpacing=["0.1", "0.2"]), (80, 200), 0.1),
        (dict(PixelSpacing=["0.2", "0.2"], PixelAspectRatio=["2", "1"]), (80, 100), 0.2),
    ],
)
def test_pixels_become_square(tmp_path, tags, shape, spacing):
    film = read_film(dicom(tmp_path / "a", WindowCenter=2048, WindowWidth=4096, **tags))
    assert film.pixels.shape == film.original_size == shape
    assert film.stored_size == RAMP.shape
    assert np.isnan(film.spacing).all() if spacing is None else film.spacing == (spacing,) * 2
    rows = np.linspace(0, 80, shape[0], endpoint=False)[:, None] * 20
    expected = (rows + np.linspace(0, 100, shape[1], endpoint=False) * 20) / 4096 * 255
    np.testing.assert_allclose(film.pixels, expected, atol=3)


def test_of_several_frames_the_first_is_read_if_asked(tmp_path):
    both = np.stack([RAMP, RAMP[::-1]]).tobytes()
    path = dicom(tmp_path / "a", NumberOfFrames=2, PixelData=both)
    np.testing.assert_array_equal(grey(path, frames="first"), grey(dicom(tmp_path / "b")))
    with pytest.raises(FilmError, match="more than one frame"):
        read_film(path)
