"""Which terms of data let weights that were trained on them be given to the public.

Nobody has settled whether weights are a work derived from films. So they are treated here as if
they were: what may not be passed on, or not for every purpose, is not in public weights. Terms that
are not in the table count as terms that forbid.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Term(NamedTuple):
    """What the terms of films or masks say of public weights."""

    public: bool
    why: str


_CREDIT = "allows any use with credit, which the model card gives"
TERMS = {
    "CC0 1.0": Term(True, "asks for nothing"),
    "CC BY": Term(True, _CREDIT),
    "CC BY 2.0": Term(True, _CREDIT),
    "CC BY 3.0": Term(True, _CREDIT),
    "CC BY 4.0": Term(True, _CREDIT),
    "NIH no restrictions": Term(True, "allows any use; the NIH asks for credit"),
    "NIH no restrictions (CC0-like, attribution requested)": Term(
        True, "allows any use; the NIH asks for credit"
    ),
    "NLM public use": Term(True, "allows any use; the NLM asks for a citation"),
    "NLM public use (cite Jaeger 2014)": Term(True, "allows any use; the NLM asks for a citation"),
    "PhysioNet Credentialed Health Data License 1.5.0": Term(
        False, "credentialed data: what comes of them goes to people with credentials only"
    ),
    "Stanford University Dataset Research Use Agreement": Term(
        False, "non-commercial research; nothing that comes of the films may be passed on"
    ),
    "RSNA Pneumonia Detection Challenge terms of use": Term(False, "non-commercial use only"),
    "PadChest Dataset Research Use Agreement": Term(False, "non-commercial research only"),
}
"""By name, as adapters and tables write it but for case and hyphens."""
_PARTS = {
    "nc": "non-commercial use only",
    "noncommercial": "non-commercial use only",
    "nd": "no derivatives",
    "noderivatives": "no derivatives",
    "sa": "what is derived needs the same licence, which a person is to choose",
    "sharealike": "what is derived needs the same licence, which a person is to choose",
}
_UNKNOWN = Term(False, "not known to allow it")


def term_of(licence: str) -> Term:
    """Look up the terms of a licence by its name; of an unknown one they forbid."""
    words = _plain(licence).split()
    found = [_PARTS[word] for word in words if word in _PARTS]
    if words[:1] in (["cc"], ["creative"]) and found:
        return Term(False, " and ".join(dict.fromkeys(found)))
    return _BY_NAME.get(" ".join(words), _UNKNOWN)


def _plain(licence: str) -> str:
    """Write a name in one way only; every word counts, in parentheses and other scripts too."""
    return re.sub(r"[\s-]+", " ", licence.casefold().replace("non-commercial", "nc")).strip()


_BY_NAME = {_plain(name): term for name, term in TERMS.items()}
