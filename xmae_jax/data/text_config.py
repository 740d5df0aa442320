"""What a config says of the text of reports: which of it is written, which is read, and how."""

from __future__ import annotations

import dataclasses
from typing import Literal

from xmae_jax.data.text import Marks


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How a study becomes films, a prefix and a text."""

    tokenizer: str | None
    """A SentencePiece model, of which the run directory keeps a copy. None takes that of the run,
    or of the public model, from which the decoder comes; if there is neither, one is made of the
    training split's reports."""
    sections: tuple[Literal["findings", "impression"], ...]
    """Which sections are written, one after the other."""
    max_length: int
    """Tokens of a text, its end among them; longer ones are cut."""
    prefix: tuple[Literal["indication", "comparison", "section", "language"], ...]
    """What is read before the text is written."""
    prefix_length: int
    """Tokens of a prefix; longer ones are cut."""
    marks: Marks
    """What becomes of the marks of de-identification."""
    views: Literal[0, 1, 2]
    """Films of a study that are read, frontal ones first; 0 reads none, and learns text alone."""

    def __post_init__(self) -> None:
        for name in ("sections", "prefix"):
            value = getattr(self, name)
            if len(set(value)) < len(value):
                raise ValueError(f"{name} names something twice: {', '.join(value)}")
        if not self.sections:
            raise ValueError("sections must be some")
        if self.max_length < 2 or self.prefix_length < 0:
            raise ValueError("max_length must be 2 or more, and prefix_length not negative")
        if bool(self.prefix) != (self.prefix_length > 0):
            raise ValueError("prefix is to be some exactly where prefix_length is positive")
