"""Tokenisers by name: a text becomes its tokens with one blank between them.

"r2gen": the cleaning that R2Gen (https://arxiv.org/abs/2010.16056) and those after it score with.
Numbers of a list and punctuation inside sentences are dropped, and each sentence ends with a token
"."; differs from the reference in that an empty text stays empty, where R2Gen makes it ".", that
line ends count as blanks and any run of points as one, and that rare words stay words.
"coco": Stanford's PTBTokenizer by Java, lower case, without punctuation, as pycocoevalcap has it.
"characters": for Chinese; each character is a token, and so is each run of a-z and 0-9.
"whitespace": the text as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xmae_jax.scores.text import java

_R2GEN_DROPS = re.compile(r"""[.,?;*!%^&_+():<=>@\[\]{}"/\\']""")
_PTB = ("tokenizer/stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer")
# The list of pycocoevalcap. It has brackets in capitals, but text is in lower case: they stay.
_COCO_DROPS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())


class Tokeniser(NamedTuple):
    """How texts are cut, and what a signature says of it."""

    case: str
    version: int
    tokenise: Callable[[Sequence[str]], list[str]]


def tokenise(texts: Sequence[str], name: str, *, cut: int | None = None) -> list[str]:
    """Return the tokens of each text with one blank between them, at most `cut` of them.

    Raises java.NoJava where the tokeniser needs what is not there.
    """
    found = TOKENISERS[name].tokenise(texts)
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


def _coco(texts: Sequence[str]) -> list[str]:
    jar, program = _PTB
    arguments = ["-cp", str(java.jar(jar)), program, "-preserveLines", "-lowerCase"]
    lines = java.answers(arguments, [java.line(text) for text in texts])
    return [" ".join(t for t in one.split(" ") if t and t not in _COCO_DROPS) for one in lines]


def _characters(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+|\S", text.lower()))


TOKENISERS = {
    "r2gen": Tokeniser("lower", 1, lambda texts: [_r2gen(text) for text in texts]),
    "coco": Tokeniser("lower", 1, _coco),
    "characters": Tokeniser("lower", 1, lambda texts: [_characters(text) for text in texts]),
    "whitespace": Tokeniser("as_written", 1, lambda texts: [java.line(text) for text in texts]),
}
