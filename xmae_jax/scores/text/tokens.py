"""Tokenisers by name: a text becomes its tokens with one blank between them.

"r2gen": the cleaning that R2Gen (https://arxiv.org/abs/2010.16056) and those after it score with.
Numbers of a list and punctuation inside sentences are dropped, and each sentence ends with a token
"."; differs from the reference in that an empty text stays empty, where R2Gen makes it ".", that
line ends count as blanks and any run of points as one, and that rare words stay words.
"characters": for Chinese; each character is a token, and so is each run of a-z and 0-9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xmae_jax.scores.text import java

_R2GEN_DROPS = re.compile(r"""[.,?;*!%^&_+():<=>@\[\]{}"/\\']""")


class Tokeniser(NamedTuple):
    """How a text is cut, and the version of that for signatures. All put it into lower case."""

    version: int
    tokenise: Callable[[str], str]


def tokenise(texts: Sequence[str], name: str, *, cut: int | None = None) -> list[str]:
    """Return the tokens of each text with one blank between them, at most `cut` of them."""
    found = [TOKENISERS[name].tokenise(text) for text in texts]
    return found if cut is None else [" ".join(one.split(" ")[:cut]) for one in found]


def _r2gen(text: str) -> str:
    text = re.sub(r"\.{2,}", ".", java.line(text)).replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    if not text.strip():
        return ""
    sentences = (_R2GEN_DROPS.sub("", one) for one in text.strip().lower().split(". "))
    return " ".join(f"{' . '.join(sentences)} .".split())


def _characters(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+|\S", text.lower()))


TOKENISERS = {"r2gen": Tokeniser(1, _r2gen), "characters": Tokeniser(1, _characters)}
