"""What of a report a model reads and writes, as text and as tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32

from xmae_jax.data.text import Marks, Tokenizer, language_of, normalise

_FREE = ("indication", "comparison")  # prefixes that a person wrote, of any length


@dataclasses.dataclass(frozen=True)
class ReportText:
    """What of a report is written, what it is written from beside the films, and how."""

    tokenizer: str | None
    """A SentencePiece model, of which the run directory keeps a copy. None takes that of the run,
    or of the public model, from which the decoder comes; for one that starts anew it is made of the
    training split's reports."""
    sections: tuple[Literal["findings", "impression"], ...]
    """What is to be written; of several each has its name before it, in capitals."""
    prefix: tuple[Literal["indication", "comparison", "section", "language"], ...]
    """What is told beforehand, in this order."""
    language: Literal["auto", "en", "zh"]
    """Of the reports; "auto" looks."""
    marks: Marks
    length: int
    """Tokens of a report at most, its end with them."""
    prefix_length: int
    """Tokens of all prefixes at most."""

    def __post_init__(self) -> None:
        if not self.sections or len(set(self.sections)) < len(self.sections):
            raise ValueError(f"sections {self.sections}: some, each once")
        if len(set(self.prefix)) < len(self.prefix):
            raise ValueError(f"prefix {self.prefix}: each once")
        if self.length < 2 or self.prefix_length < 0:
            raise ValueError(f"length {self.length}, prefix_length {self.prefix_length}: too short")
        if bool(self.prefix) != bool(self.prefix_length):
            raise ValueError(f"prefix {self.prefix} of {self.prefix_length} tokens")

    def target(self, report: Mapping[str, str]) -> str:
        """Return the normalised text that is to be written; empty where there is none."""
        parts = {name: normalise(report[name], self.marks) for name in self.sections}
        if len(parts) == 1:
            return parts[self.sections[0]]
        return " ".join(f"{name.upper()}: {text}" for name, text in parts.items() if text)

    def prefixes(self, report: Mapping[str, str]) -> dict[str, str]:
        """Return what is told beforehand, each as `name: text`; nothing where it is empty."""
        told = {name: normalise(report[name], self.marks) for name in self.prefix if name in _FREE}
        told["section"] = ", ".join(self.sections)
        told["language"] = self.language
        if self.language == "auto":
            told["language"] = language_of(" ".join(report[name] for name in self.sections))
        return {name: f"{name}: {told[name]}" for name in self.prefix if told[name]}

    def tokens(self, report: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Tokenise a report: `prefix`, `text`, `has_text` and `cut`, as `ReportView` has them."""
        length, text = self.length, self.target(report)
        ids = [*self._encode(text), Tokenizer.end] if text else []
        return {
            "prefix": self._prefix(self.prefixes(report)),
            "text": _padded(ids[:length], length),
            "has_text": np.array(bool(ids)),
            "cut": np.array(max(len(ids) - length, 0), np.int32),
        }

    def _encode(self, text: str) -> list[int]:
        # Without a tokenizer shapes are known, which is what a plan wants.
        return [] if self.tokenizer is None else tokenizer_of(self.tokenizer).encode(text)

    def _prefix(self, told: dict[str, str]) -> Int32[np.ndarray, " p"]:
        """Put prefixes side by side; where they are too long, what a person wrote is cut."""
        parts = {name: self._encode(text) for name, text in told.items()}
        over = sum(map(len, parts.values())) - self.prefix_length
        for name in sorted(parts, key=lambda name: (name not in _FREE, -len(parts[name]))):
            kept = max(len(parts[name]) - max(over, 0), 0)
            over -= len(parts[name]) - kept
            parts[name] = parts[name][:kept]
        return _padded([one for part in parts.values() for one in part], self.prefix_length)


@functools.lru_cache(maxsize=8)
def tokenizer_of(path: str) -> Tokenizer:
    """Load a tokenizer once."""
    return Tokenizer.load(path)


def _padded(ids: Sequence[int], length: int) -> Int32[np.ndarray, " length"]:
    row = np.full(length, Tokenizer.pad, np.int32)
    row[: len(ids)] = ids
    return row
