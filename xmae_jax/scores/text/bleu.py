"""BLEU-1 to 4 of a set of texts (https://aclanthology.org/P02-1040), as pycocoevalcap has it.

The counts of a study add up, so those of any set of studies give its score, and so do those of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

ORDERS = 4
COUNTS = 2 + 2 * ORDERS
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's: nothing written scores about 0, not NaN

NGrams = Counter[tuple[str, ...]]


def ngrams(text: str) -> list[NGrams]:
    """Count the n-grams of a text of tokens, n from 1 to 4."""
    words = text.split()
    return [Counter(zip(*(words[i:] for i in range(n)))) for n in range(1, ORDERS + 1)]  # noqa: B905


def counts(
    generated: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, "s 10"]:
    """Count for each study its length, that of the closest reference, n-grams, and hits.

    The closest reference is the shorter one of two that are equally close.
    """
    out = np.empty((len(generated), COUNTS))
    for row, text, allowed in zip(out, generated, references, strict=True):
        length = len(text.split())
        lengths = [len(one.split()) for one in allowed]
        row[0], row[1] = length, min(lengths, key=lambda one: (abs(one - length), one))
        row[2 : 2 + ORDERS] = [max(length - n, 0) for n in range(ORDERS)]
        known = [ngrams(one) for one in allowed]
        for n, own in enumerate(ngrams(text)):
            most: NGrams = Counter()
            for one in known:
                most |= one[n]
            row[2 + ORDERS + n] = (own & most).total()
    return out


def scores(sums: Float64[np.ndarray, "*r 10"]) -> Float64[np.ndarray, "*r 4"]:
    """Return BLEU-1 to 4 of summed counts."""
    written, closest = sums[..., 0], sums[..., 1]
    guessed, right = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    precision = np.cumprod((right + _TINY) / (guessed + _SMALL), axis=-1)
    ratio = (written + _TINY) / (closest + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    return precision ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
