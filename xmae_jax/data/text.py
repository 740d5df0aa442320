"""The text of reports: sections, one written form, sentences, and tokens.

Reports are told of patients: nothing here logs a word of one, and no error quotes one. What is done
to a text before it is tokenised has a name, NORMALISATION, and a policy on the marks that
de-identification leaves (`XXXX` in Open-i's reports, `___` in MIMIC's); both are to be recorded
with whatever is made of it.

Tokens are pieces of a SentencePiece model (Kudo and Richardson 2018,
https://arxiv.org/abs/1808.06226): our own, of `data_prep.tokenizer`, or that of any T5.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import sentencepiece
from jaxtyping import Int

from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import NO_REPORT, Report

NORMALISATION = "report-1"
"""Names what `normalise` does; raised whenever a text would come out otherwise."""
MARK = "XXXX"
"""What stands for words that de-identification took out, in normalised text."""
Marks = Literal["keep", "drop_word", "drop_sentence"]
"""Keep marks, each as one token; or leave out the word, or the sentence, in which one stands."""
_MAX_MODEL = 64 << 20  # bytes; mT5's has 4 MB
_CJK = "\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,/()&'-]{2,60}?)[ \t]*:", re.MULTILINE)
# Any other heading ("LUNGS", "ICU") is a part of the section in which it stands.
_SECTION = re.compile(
    r"(ADDENDUM|CLINICAL|COMPARISON|CONCLUSION|EXAM|FINAL REPORT|FINDING|HISTORY|IMPRESSION"
    r"|INDICATION|NOTIFICATION|REASON FOR|RECOMMENDATION|TECHNIQUE|WET READ)"
    r"|.* (HISTORY|INDICATIONS?)$"
)
_READ_BEFORE = ("indication", "comparison")  # than a report is written, and of one paragraph
_AFTER = "after them"
_PARAGRAPH = re.compile(r"\n\s*\n")
# Of NLM's XML, and of the pages that Open-i's search returns.
_MARKED_UP = re.compile(
    r'<AbstractText Label="([A-Z]+)">([^<]*)</AbstractText>|<p><b>(\w+): ?</b>([^<]*)</p>'
)

_PLAIN = str.maketrans(
    "\u2018\u2019\u201c\u201d\u2010\u2011\u2012\u2013\u2014\u2212\u2581", "''\"\"------ "
)
# Control and format characters, those apart that are blanks; a list, as Unicode's grows.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_MARKS = re.compile(r"X{3,}|x{4,}|_{2,}")
_NUMBER = re.compile(r"(?:^|(?<=[.;:!?] ))\(?\d{1,2}[.)] ?(?=[^\d\s])")  # "2. " of a list
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])\s*")
_NO_END = re.compile(r"(?:^\(?\d{1,2}[.)]|\b(?:[DdMm]r|Mrs|Ms|vs|e\.g|i\.e|approx)\.)$")


def sections(text: str) -> Report:
    """Cut a raw report into its sections.

    Either by headings in capitals, as MIMIC-CXR has them, or by the marks of Open-i's XML and HTML.
    A heading that holds both findings and impression counts as findings; history and reason count
    as indication. Indication and comparison end with their first paragraph: what follows without a
    heading counts as findings where there are no others. What stands under none of these is left
    out.
    """
    marked = [(a or b, c or d) for a, c, b, d in _MARKED_UP.findall(text)]
    if marked:
        pairs = [(name.upper(), " ".join(html.unescape(words).split())) for name, words in marked]
    else:
        parts = _HEADING.split(text)
        pairs = list(zip(parts[1::2], parts[2::2], strict=True))
    found: dict[str, list[str]] = {name: [] for name in (*NO_REPORT, _AFTER)}
    section = ""
    for heading, body in pairs:
        name, said = " ".join(heading.split()), [body]
        known = _SECTION.match(name)
        if known:
            section = _section(name)
        if section in _READ_BEFORE:
            said = _PARAGRAPH.split(body.lstrip() or body, 1)
        if not known:
            said[0] = f"{name}: {said[0]}"
        for place, part in enumerate(said):
            section = _AFTER if place else section
            words = " ".join(part.split())
            if section and words:
                found[section].append(words)
    after = found.pop(_AFTER)
    found["findings"] = found["findings"] or after
    return cast(Report, {name: "\n".join(words) for name, words in found.items()})


def _section(heading: str) -> str:
    if heading.startswith("FINDING"):
        return "findings"
    if heading.startswith(("IMPRESSION", "CONCLUSION")):
        return "impression"
    if heading.startswith("COMPARISON"):
        return "comparison"
    if re.match(r"CLINICAL|REASON FOR|.*(HISTORY|INDICATION)", heading):
        return "indication"
    return ""


def normalise(text: str, marks: Marks) -> str:
    """Write a section in one way: composed characters, plain quotes and dashes, single blanks.

    Numbers of a list and blanks before punctuation or between Chinese characters are left out.
    Letters keep their case and Chinese punctuation its width.
    """
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = _tidy(_MARKS.sub(MARK, _UNSEEN.sub("", text)))
    if marks == "drop_word":
        parts = re.split(rf"([\s{_CJK}]+)", text)
        text = _tidy("".join(_ending(part) if MARK in part else part for part in parts))
    elif marks == "drop_sentence":
        text = _tidy(" ".join(one for one in sentences(text) if MARK not in one))
    return text


def _ending(word: str) -> str:
    """Return the punctuation with which a word ends."""
    return word[len(word.rstrip(".,;:!?")) :]


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    text = re.sub(rf"(?<=[{_CJK}]) (?=[{_CJK}])", "", text)
    text = re.sub(r"( ?\.){2,}(?!\d)", ".", text)
    text = re.sub(r" ([.,;:!?])(?= |$)", r"\1", text)
    return _NUMBER.sub("", text).lstrip(".,;:!? ")


def sentences(text: str) -> list[str]:
    """Split a text after its full stops, those of abbreviations and lists apart."""
    found: list[str] = []
    for part in filter(None, _SENTENCE.split(text.strip())):
        if found and _NO_END.search(found[-1]):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def words(text: str) -> list[str]:
    """Split a text at blanks; a Chinese character is a word."""
    return re.findall(rf"[{_CJK}]|[^\s{_CJK}]+", text)


def language_of(text: str) -> str:
    """Tell "zh" from "en" by the share of Chinese characters."""
    chinese = len(re.findall(rf"[{_CJK}]", text))
    return "zh" if 5 * chinese > sum(map(len, text.split())) else "en"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; threads and pickled copies may share it."""

    digest: str
    """sha256 of the model's file."""
    vocab: int
    """How many pieces there are; a model's table may have more rows."""
    model: Any = dataclasses.field(repr=False, compare=False)

    pad: ClassVar[int] = 0
    end: ClassVar[int] = 1
    unknown: ClassVar[int] = 2

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Read a SentencePiece model; DataError if it is none, or has not T5's ids."""
        path = Path(path)
        try:
            if not path.is_file() or path.stat().st_size > _MAX_MODEL:
                raise DataError(f"{path}: no SentencePiece model: not there, no file or too large")
            data = path.read_bytes()
            model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{path}: no SentencePiece model ({type(error).__name__})") from None
        ids = (model.pad_id(), model.eos_id(), model.unk_id())
        if ids != (cls.pad, cls.end, cls.unknown):
            raise DataError(f"{path}: its ids of padding, end and unknown are {ids}, not (0, 1, 2)")
        return cls(hashlib.sha256(data).hexdigest(), model.vocab_size(), model)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without an end."""
        return self.model.encode(text)

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " t"]) -> str:
        """Return the text of ids up to the first end; padding and ids of no piece are left out."""
        kept = []
        for one in map(int, ids):
            if one == self.end:
                break
            if one != self.pad and one < self.vocab:
                kept.append(one)
        # A blank that is no piece comes back by its bytes, as SentencePiece writes it.
        return self.model.decode(kept).replace("\u2581", " ")


def by_sentence(
    tokenizer: Tokenizer, ids: Sequence[int] | Int[np.ndarray, " t"]
) -> tuple[list[str], Int[np.ndarray, " t"]]:
    """Decode ids; return the sentences, and to which of them each id belongs.

    An id goes with the sentence of its last character. -1: the end, and what comes after it.
    """
    found, place = sentences(tokenizer.decode(ids)), np.full(len(ids), -1)
    if not found:
        return [], place
    ends = np.cumsum([len("".join(one.split())) for one in found])
    length = next((i for i, one in enumerate(ids) if one == tokenizer.end), len(ids))
    told = ["".join(tokenizer.decode(ids[: i + 1]).split()) for i in range(length)]
    # Bytes of one character count for several as long as the last of them is missing.
    counts = np.minimum.accumulate(np.array([len(text) for text in told])[::-1])[::-1]
    place[:length] = np.searchsorted(ends, np.maximum(counts, 1))  # leading blanks go on
    kept = np.unique(place[:length])  # a sentence may end in the middle of an id: it goes on too
    place[:length] = np.searchsorted(kept, place[:length])
    return [" ".join(part) for part in np.split(np.array(found), kept[:-1] + 1)], place


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, int | float]:
    """Measure how a tokenizer fits normalised texts.

    per_word: tokens a word (`words`); characters: a token; bytes, unknown: shares of the tokens
    that are bytes, or no piece; covered: share of the characters, blanks apart, that pieces spell;
    length_50, _95, _99, _max: tokens a text.
    """
    count, told, odd, unknown = 0, 0, 0, 0
    lengths: list[int] = []
    characters: Counter[str] = Counter()
    for text in texts:
        ids = tokenizer.encode(text)
        lengths.append(len(ids))
        count += len(words(text))
        told += len(text)
        odd += sum(map(tokenizer.model.is_byte, ids))
        unknown += ids.count(tokenizer.unknown)
        characters[MARK] += text.count(MARK)
        characters.update("".join(text.replace(MARK, "").split()))
    spelt = {c: len(c) * n for c, n in characters.items() if _spelt(tokenizer, c)}
    solid = sum(len(c) * n for c, n in characters.items())
    tokens = max(sum(lengths), 1)
    marks: Sequence[float] = np.quantile(lengths or [0], (0.5, 0.95, 0.99, 1.0)).tolist()
    return {
        "texts": len(lengths),
        "words": count,
        "tokens": sum(lengths),
        "per_word": sum(lengths) / max(count, 1),
        "characters": told / tokens,
        "bytes": odd / tokens,
        "unknown": unknown / tokens,
        "covered": sum(spelt.values()) / max(solid, 1),
        **{f"length_{name}": value for name, value in zip((50, 95, 99, "max"), marks, strict=True)},
    }


def _spelt(tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text)
    return not any(one == tokenizer.unknown or tokenizer.model.is_byte(one) for one in ids)
