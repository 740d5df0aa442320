"""METEOR 1.5 (https://aclanthology.org/W14-3348), English, by its own program and nothing else.

The program aligns texts and counts; the counts add up over studies, and the score is computed from
them as in the program, whose own sums the parity tests compare. It has no part for Chinese.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from xmae_jax.scores.text import java

COUNTS = 23
_CHUNKS = 20
_JAR = "meteor/meteor-1.5.jar"
# The program's parameters for English, tuned for ranking.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # the same word, stem, synonym, paraphrase


def program() -> tuple[Path, str]:
    """Return the jar and 8 digits of its digest, or raise java.NoJava."""
    path = java.jar(_JAR)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def counts(
    generated: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, "s 23"]:
    """Return what the program counts of each study, for the reference that scores best."""
    path, _ = program()
    lines = [
        " ||| ".join(["SCORE", *map(_plain, allowed), _plain(text)])
        for text, allowed in zip(generated, references, strict=True)
    ]
    answers = java.answers(["-jar", str(path), "-", "-", "-stdio", "-l", "en", "-norm"], lines)
    try:
        rows = [[float(cell) for cell in one.split()] for one in answers]
        found = np.array(rows, np.float64).reshape(len(lines), COUNTS)
    except ValueError:
        raise java.NoJava("METEOR answered with something else than its counts") from None
    # A text of which every word is matched in one piece is not broken up: no piece is added.
    whole = (found[:, 21:23] == found[:, :2]).all(axis=1) & (found[:, _CHUNKS] == 1)
    found[whole, _CHUNKS] = 0
    return found


def _plain(text: str) -> str:
    """Put a text on one line without what parts texts on it."""
    return java.line(re.sub(r"\|{2,}", " ", text))


def scores(sums: Float64[np.ndarray, "*r 23"]) -> Float64[np.ndarray, "*r"]:
    """Return METEOR of summed counts; 0 where no word was matched."""
    lengths, function = sums[..., :2], sums[..., 2:4]
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # stage, content or function, side
    chunks, matched = sums[..., _CHUNKS], sums[..., 21:23]
    hits = np.einsum("...kfs,k->...fs", stages, _WEIGHTS)
    hits = _DELTA * hits[..., 0, :] + (1 - _DELTA) * hits[..., 1, :]
    words = _DELTA * (lengths - function) + (1 - _DELTA) * function
    precision, recall = np.moveaxis(hits / np.where(words > 0, words, 1.0), -1, 0)
    some = (precision > 0) & (recall > 0)
    mean = 1 / (
        (1 - _ALPHA) / np.where(some, precision, 1.0) + _ALPHA / np.where(some, recall, 1.0)
    )
    broken = chunks / np.where(some, matched.mean(axis=-1), 1.0)
    return np.where(some, mean * (1 - _GAMMA * broken**_BETA), 0.0)
