"""Sex and age: the usual spellings mean one thing, and what is stored tells nobody apart."""

import math

import numpy as np
import pytest

from tests.data.made import RAMP, dicom_bytes
from xmae_jax.data.film import read_film
from xmae_jax.data.people import age_of, sex_of, stored_age


def test_spellings_of_a_sex():
    assert {sex_of(text) for text in ("F", "f", " Female ", "WOMAN", "girl")} == {"F"}
    assert {sex_of(text) for text in ("M", "male", "Man", "boy")} == {"M"}
    assert {sex_of(text) for text in ("", "O", "Unknown", "n/a", "U")} == {""}
    assert {sex_of(text) for text in ("1", "X-ray", "f.m", "females")} == {None}


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("34", 34),
        ("034Y", 34),
        ("000Y", math.nan),
        ("0 years", math.nan),
        ("0", 0),
        ("000D", 0),
        ("34.5", 34.5),
        ("018M", 1.5),
        ("5 months", 5 / 12),
        ("003W", 21 / 365.25),
        ("003D", 3 / 365.25),
        ("58 years old", 58),
        ("90+", 90),
        (">89", 90),
        (">= 90 years", 90),
        ("18+", None),
        ("100 months +", None),
        ("414", 414),
        ("-3", -3),
        ("", math.nan),
        ("nan", math.nan),
        ("unknown", math.nan),
        ("adult", None),
        ("34 Y 5 M", None),
        ("1e3", None),
        ("34X", None),
        ("34 M", None),
        ("34M", None),
        ("034 M", None),
    ],
)
def test_spellings_of_an_age(text, years):
    assert age_of(text) == (years if years is None else pytest.approx(years, nan_ok=True))


def test_nobody_is_found_by_a_stored_age():
    assert [stored_age(float(age)) for age in (0, 0.123456, 89, 89.1, 90, 104, 120)] == [
        *(0, 0.12, 89),
        *[90] * 4,
    ]
    assert all(math.isnan(stored_age(age)) for age in (-1.0, 121.0, 414.0, math.nan))


@pytest.mark.parametrize(
    ("sex", "age", "stored", "flags"),
    [
        ("F", "034Y", ("F", 34), ()),
        ("m ", "018M", ("M", 1.5), ()),
        ("O", "", ("", math.nan), ()),
        ("ZZPHI", "ZZPHI", ("", math.nan), ()),
        ("M", "000Y", ("M", math.nan), ()),
        ("M", "000D", ("M", 0), ()),
        ("F", "148", ("F", math.nan), ("age",)),
        ("F", "101Y", ("F", 90), ()),
    ],
)
def test_headers(tmp_path, sex, age, stored, flags):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(RAMP, PatientSex=sex, PatientAge=age))
    film = read_film(tmp_path / "a.dcm")
    assert film.sex == stored[0] and film.flags == flags
    np.testing.assert_equal(film.age, float(stored[1]))
    assert "sex" not in repr(film) and "age=" not in repr(film)
