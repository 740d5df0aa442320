"""The sex and the age of whoever is on a film, as tables and DICOM headers spell them.

Ages over 89 are stored as 90: with them, a person may be found (the Safe Harbor rule of HIPAA,
45 CFR 164.514(b)(2)(i)(C)).
"""

import math
import re

from xmae_jax.scores.groups import AGE_BANDS as AGE_BANDS
from xmae_jax.scores.groups import age_band as age_band

OLDEST = 90.0  # years as stored: 90 and more
UNREADABLE = math.inf  # for an age that is told in a way that nobody can read; implausible
_PLAUSIBLE = 120.0
_NOT_TOLD = ("", "?", "u", "unk", "unknown", "n", "n/a", "na", "nan", "none", "not reported")
_SEXES = {
    **dict.fromkeys(("f", "female", "w", "woman", "girl"), "F"),
    **dict.fromkeys(("m", "male", "man", "boy"), "M"),
    **dict.fromkeys((*_NOT_TOLD, "o", "other"), ""),
}
_AGE = re.compile(r"(>=?|≥)?\s*(-?\d{1,6}(?:\.\d{1,20})?)\s*([a-z]*)(?:\s*old)?\s*(\+)?")
_MONTHS = re.compile(r"\d{3}m")  # as DICOM spells them; "34 M" may be a man of 34
_A_YEAR = {  # of units
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years"), 1.0),
    **dict.fromkeys(("mo", "mos", "month", "months"), 12.0),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 365.25 / 7),
    **dict.fromkeys(("d", "day", "days"), 365.25),
}


def sex_of(text: str) -> str | None:
    """Read "F", "male", ... as "F", "M" or "" (not told); None if it is something else."""
    return _SEXES.get(text.strip().lower())


def age_of(text: str) -> float | None:
    """Read "34", "034Y", "018M", "3 weeks", "90+" as years, NaN if not told.

    "000Y" is not told: devices write it that were told none. A bound is an age from 89 years on:
    ">89" and "90+" are 90, as it is stored. None if it is something else, as "adult", "34 M" and
    "18+" are. Implausible numbers come back as they are.
    """
    text = text.strip().lower()
    if text in _NOT_TOLD:
        return math.nan
    if _MONTHS.fullmatch(text):
        return int(text[:3]) / 12
    match = _AGE.fullmatch(text)
    units = _A_YEAR.get(match[3]) if match else None
    if match is None or units is None:
        return None
    age = float(match[2]) / units
    if match[1] or match[4]:
        return OLDEST if age >= 89 and units == 1 else None
    return math.nan if age == 0 and match[3].startswith("y") else age


def plausible(age: float) -> bool:
    """Tell whether somebody may be of this age in years; NaN is not told, so nobody is."""
    return 0 <= age <= _PLAUSIBLE


def stored_age(age: float) -> float:
    """Return an age in years as it is stored: hundredths, 90 above 89, NaN if not plausible."""
    if not plausible(age):
        return math.nan
    return OLDEST if age > 89 else round(age, 2)
