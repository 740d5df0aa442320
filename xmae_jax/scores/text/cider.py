"""CIDEr of each text (https://arxiv.org/abs/1411.5726), as pycocoevalcap has it.

That is CIDEr-D: n-grams of a text count at most as often as in the reference, and a text of another
length is punished; times 10. An n-gram weighs by the studies whose references have it, so a score
is of a text among these references; of a single study every weight is log(1/1) = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from xmae_jax.scores.text.bleu import NGrams, ngrams

SIGMA = 6.0
_SCALE = 10.0


def scores(
    generated: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, " s"]:
    """Score each text of tokens against its references, with the frequencies of all of them."""
    known = [[ngrams(one) for one in allowed] for allowed in references]
    studies: NGrams = Counter()
    for allowed in known:
        studies.update({gram for one in allowed for grams in one for gram in grams})
    total = np.log(max(len(references), 1))
    weight = {gram: float(total - np.log(count)) for gram, count in studies.items()}
    out = np.empty(len(generated))
    for i, (text, allowed) in enumerate(zip(generated, known, strict=True)):
        own = ngrams(text)
        alike = [_alike(own, one, weight, new=float(total)) for one in allowed]
        out[i] = _SCALE * np.mean(alike)
    return out


def _alike(
    own: Sequence[NGrams], other: Sequence[NGrams], weight: dict[tuple[str, ...], float], new: float
) -> float:
    """Return the mean over n of the clipped cosine; an n-gram of no reference weighs `new`."""
    cosines = []
    for mine, theirs in zip(own, other, strict=True):
        weighted = [{g: c * weight.get(g, new) for g, c in one.items()} for one in (mine, theirs)]
        norms = [np.sqrt(sum(value**2 for value in one.values())) for one in weighted]
        common = sum(
            min(value, weighted[1][gram]) * weighted[1][gram]
            for gram, value in weighted[0].items()
            if gram in weighted[1]
        )
        cosines.append(common / (norms[0] * norms[1]) if norms[0] and norms[1] else common)
    apart = own[0].total() - other[0].total()
    return float(np.mean(cosines) * np.exp(-(apart**2) / (2 * SIGMA**2)))
