"""How much of what is written is written anew: copies of training, distinct texts, lengths.

Normal studies read alike, so the references, told beside, are copies too, and often.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmae_jax.scores.text.tokens import tokenise


def originality(
    texts: Mapping[str, Sequence[tuple[str, bool | None]]], *, tokeniser: str
) -> dict[str, Any]:
    """Describe sets of texts; two texts are alike if all their tokens are.

    Beside each stands whether training has the like (`in_training`), None if that is not known.
    Lengths are in tokens.
    """
    return {
        name: _described(
            tokenise([text for text, _ in some], tokeniser), [known for _, known in some]
        )
        for name, some in texts.items()
    }


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def _described(texts: Sequence[str], known: Sequence[bool | None]) -> dict[str, Any]:
    often = Counter(texts)
    lengths = np.array([len(text.split()) for text in texts])
    copied = None if None in known else sum(map(bool, known))
    total = max(len(texts), 1)
    low, middle, high = np.percentile(lengths, [5, 50, 95]).tolist() if len(texts) else [None] * 3
    return {
        "reports": len(texts),
        "empty": often[""],
        "distinct": len(often),
        "distinct_share": len(often) / total,
        "most_frequent": max(often.values(), default=0),
        "copied": copied,
        "copied_share": None if copied is None else copied / total,
        "length": {
            "mean": float(lengths.mean()) if len(texts) else None,
            "p5": low,
            "median": middle,
            "p95": high,
        },
    }


def in_training(texts: Sequence[str], *, training: Iterable[str], tokeniser: str) -> list[bool]:
    """Tell of each text whether one of training is alike; an empty text is nobody's copy."""
    known = {_digest(text) for text in tokenise(list(training), tokeniser) if text}
    return [text != "" and _digest(text) in known for text in tokenise(texts, tokeniser)]
