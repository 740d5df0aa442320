"""No value that could identify a patient leaves a file by a reason, a log line or a repr.

ZZPHI and dates of 1942 stand in every text element of the DICOM dictionary, which has all of PS3.15
annex E, in private elements, in the texts of PNG, JPEG and TIFF, and in file names.
"""

import io
import logging
import traceback
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data.made import RAMP, dicom_bytes, header, png_chunk
from xmae_jax.data.film import FilmError, dicom_ids, read_film, read_mask

CANARIES = ("ZZPHI", "zzphi", "1942", "0203")
VALUES = {
    "AE": "ZZPHI",
    "AS": "077Y",
    "CS": "ZZPHI",
    "DA": "19420203",
    "DT": "19420203020319",
    "LO": "ZZPHI long",
    "LT": "ZZPHI text",
    "PN": "ZZPHI^Jane",
    "SH": "ZZPHI",
    "ST": "ZZPHI text",
    "TM": "020319",
    "UC": "ZZPHI",
    "UI": "1.2.999.19420203",
    "UR": "http://zzphi/19420203",
    "UT": "ZZPHI text",
}
STRUCTURE = (0x0000, 0x0002, 0x0028, 0x5400, 0x7FE0, 0xFFFA, 0xFFFC, 0xFFFE)  # groups of no text


def canaries(**tags) -> bytes:
    """Return a film with a canary in every element of the dictionary that can hold one."""
    dataset = header(RAMP)
    for tag, (kind, multiplicity, _, _, keyword) in DicomDictionary.items():
        kind = kind.split(" or ")[0]
        single = multiplicity.split("-")[0].isdigit()
        if not keyword or not single or tag >> 16 in STRUCTURE or kind not in (*VALUES, "SQ"):
            continue
        if kind == "SQ":
            item = Dataset()
            item.PatientName = VALUES["PN"]
            dataset.add_new(tag, "SQ", Sequence([item]))
        else:
            dataset.add_new(tag, kind, [VALUES[kind]] * int(multiplicity.split("-")[0]))
    block = dataset.private_block(0x0009, "ZZPHI MAKER", create=True)
    block.add_new(1, "LO", "ZZPHI private")
    block.add_new(2, "OB", b"ZZPHI bytes")
    dataset.Modality, dataset.BurnedInAnnotation = "CR", "NO"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.setdefault("PixelData", RAMP.tobytes()) if "PixelData" not in dataset else None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def told(tmp_path, caplog, capfd, monkeypatch):
    """Return a function that reads bytes and returns all that was said: reason, logs, prints."""
    caplog.set_level(logging.DEBUG)

    def read(data: bytes) -> str:
        path = tmp_path / "ZZPHI^Jane_19420203.dcm"
        path.write_bytes(data)
        said = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                film = read_film(path)
                said += [repr(film), str(film), *film.flags]
                said += [film.kind, film.vendor, film.view, film.modality]
            except FilmError as error:
                said += [repr(error), "".join(traceback.format_exception(error))]
                chain = error
                while chain := chain.__context__ or chain.__cause__:
                    said.append(repr(chain))
            for other in (read_mask, dicom_ids):
                try:
                    other(path)
                except FilmError as error:
                    said.append(repr(error))
        said += [str(warning.message) for warning in caught]
        out, err = capfd.readouterr()
        said += [out, err, caplog.text]
        caplog.clear()
        return "\n".join(said).replace(str(path), "")

    return read


def assert_silent(text: str) -> None:
    # The line of the traceback that names this test's own file is not the film's.
    for canary in CANARIES:
        assert canary not in text, text[max(text.find(canary) - 300, 0) :][:600]


def test_the_canaries_are_there():
    data = canaries()
    assert data.count(b"ZZPHI") > 500 and data.count(b"19420203") > 100


def test_a_good_film_tells_nothing(told, tmp_path):
    assert_silent(told(canaries()))
    assert dicom_ids(tmp_path / "ZZPHI^Jane_19420203.dcm")[0] == VALUES["LO"]  # for hashing


@pytest.mark.parametrize(
    "tags",
    [
        dict(Modality="CT"),
        dict(Modality="ZZPHI"),
        dict(BodyPartExamined="ZZPHI", ViewPosition="ZZPHI", Manufacturer="ZZPHI"),
        dict(PhotometricInterpretation="ZZPHI"),
        dict(PhotometricInterpretation="PALETTE COLOR"),
        dict(VOILUTFunction="ZZPHI", WindowCenter=1500, WindowWidth=1000),
        dict(NumberOfFrames=19420203),
        dict(BitsStored=99),
        dict(Rows=30),
        dict(PixelData=b"ZZPHI!"),
    ],
    ids=lambda tags: ",".join(f"{name}" for name in tags),
)
def test_a_bad_header_tells_nothing(told, tags):
    assert_silent(told(canaries(**tags)))


def test_numbers_that_are_words_tell_nothing(told):
    data = canaries(
        WindowCenter=1111, WindowWidth=2222, RescaleSlope=3333, NumberOfFrames=4444
    ).replace(b"4444", b"ZZ42")
    assert_silent(told(data))
    for number in (b"1111", b"2222", b"3333"):
        assert_silent(told(data.replace(b"ZZ42", b"1   ").replace(number, b"ZZPH")))


def test_an_unknown_transfer_syntax_tells_nothing(told):
    explicit, secret = b"1.2.840.10008.1.2.1\0", b"1.2.999.19420203\0\0\0\0"
    assert "unknown transfer syntax" in (text := told(canaries().replace(explicit, secret, 1)))
    assert_silent(text)


def test_cut_and_flipped_files_tell_nothing(told):
    data, rng = canaries(), np.random.default_rng(0)
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.99):
        assert_silent(told(data[: int(len(data) * share)]))
    for _ in range(20):
        broken = bytearray(data)
        for at in rng.integers(132, len(data), 40):
            broken[at] = rng.integers(256)
        assert_silent(told(bytes(broken)))


def pictures() -> dict[str, bytes]:
    film = Image.fromarray((RAMP >> 4).astype(np.uint8))
    exif = Image.Exif()
    for tag in (0x010E, 0x013B, 0x8298, 0x010F, 0x0110, 0x9C9D):  # description, artist, ...
        exif[tag] = "ZZPHI 19420203"
    xmp = b"<x:xmpmeta><dc:creator>ZZPHI 19420203</dc:creator></x:xmpmeta>"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("ZZPHI", "ZZPHI 19420203")
    texts.add_text("Comment", "ZZPHI 19420203", zip=True)
    texts.add_itxt("Title", "ZZPHI 19420203", "en", "ZZPHI", zip=True)
    options = dict(
        PNG=dict(pnginfo=texts, exif=exif),
        JPEG=dict(comment=b"ZZPHI 19420203", exif=exif, xmp=xmp),
        TIFF=dict(tiffinfo={270: "ZZPHI 19420203", 306: "1942:02:03", 315: "ZZPHI", 316: "ZZPHI"}),
    )
    made = {}
    for kind, extra in options.items():
        buffer = io.BytesIO()
        film.save(buffer, kind, **extra)
        made[kind] = buffer.getvalue()
    return made


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_pictures_tell_nothing(told, kind):
    data, rng = pictures()[kind], np.random.default_rng(0)
    assert b"ZZPHI" in data
    assert_silent(told(data))
    for share in (0.05, 0.2, 0.5, 0.95):
        assert_silent(told(data[: int(len(data) * share)]))
    for _ in range(20):
        broken = bytearray(data)
        for at in rng.integers(8, len(data), 10):
            broken[at] = rng.integers(256)
        assert_silent(told(bytes(broken)))


def test_names_of_chunks_tell_nothing(told):
    odd = pictures()["PNG"]
    assert_silent(told(odd[:33] + png_chunk(b"ZZPH", b"ZZPHI") + odd[33:]))
    assert_silent(told(dicom_bytes(RAMP)[:132] + b"ZZPHI" * 50))
