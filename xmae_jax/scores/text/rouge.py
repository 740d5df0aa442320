"""ROUGE-L of each text (https://aclanthology.org/W04-1013), as pycocoevalcap has it.

Recall weighs beta = 1.2 times as much as precision; with several references the best precision and
the best recall are taken, be they of two of them. A set's score is the mean of its texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

BETA = 1.2


def scores(
    generated: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, " s"]:
    """Score each text of tokens; an empty one counts as one empty token, as there."""
    return np.array([_score(*pair) for pair in zip(generated, references, strict=True)], np.float64)


def _score(text: str, references: Sequence[str]) -> float:
    own = text.split(" ")
    others = [one.split(" ") for one in references]
    common = [common_length(own, other) for other in others]
    precision = max(common) / len(own)
    recall = max(hits / len(other) for hits, other in zip(common, others, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the table is kept as bits of an integer, so that a token costs one addition
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    places: dict[str, int] = defaultdict(int)
    for i, token in enumerate(one):
        places[token] |= 1 << i
    full = (1 << len(one)) - 1
    row = full
    for token in other:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(one) - row.bit_count()
