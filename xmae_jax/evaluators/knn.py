"""k nearest neighbours on frozen features: DINO's protocol, adapted to many labels.

As in `eval_knn.py` of DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294) features are
scaled to length one, the k training films of the largest cosine vote, and a vote weighs
exp(cosine / 0.07). Differs from the reference in that films have many labels, some of them unknown:
for each finding the score is the weighted share of films with it among the neighbours of which it
is known, and what is compared is AUROC and average precision, not accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import logit

TEMPERATURE = 0.07
_LEAST = 1e-12  # share of a finding, so that its logit is finite
_QUERIES, _REFERENCES = 1024, 8192  # compared at once: 32 MB of cosines
_VOTES = 128  # queries voted on at once


@partial(jax.jit, static_argnames="k")
def _closer(
    best: tuple[Array, Array], queries: Array, references: Array, first: Array, real: Array, *, k
) -> tuple[Array, Array]:
    """Put a block of references beside the best so far; at a tie the lower index stays."""
    cosine = jnp.matmul(queries, references.T, precision=jax.lax.Precision.HIGHEST)  # b r
    place = jnp.arange(len(references))
    cosine = jnp.where((place < real)[None], cosine, -jnp.inf)
    index = jnp.broadcast_to((first + place)[None], cosine.shape)
    cosine, index = (jnp.concatenate(both, 1) for both in zip(best, (cosine, index), strict=True))
    cosine, order = jax.lax.top_k(cosine, k)
    return cosine, jnp.take_along_axis(index, order, 1)


def nearest(
    queries: Float[np.ndarray, "q d"], references: Float[np.ndarray, "n d"], *, k: int
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Return cosine and index of the k references next to each query, the nearest first.

    Exact; memory is bounded by blocks of both sides. k: at most n.
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"k is {k}, and there are {len(references)} references")
    queries, references = _unit(queries), _unit(references)
    found = []
    rows, columns = min(_QUERIES, len(queries)), min(_REFERENCES, len(references))
    for top in range(0, len(queries), _QUERIES):
        some = jnp.asarray(_padded(queries[top : top + _QUERIES], rows))
        best = (jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32))
        for first in range(0, len(references), _REFERENCES):
            block = references[first : first + _REFERENCES]
            best = _closer(best, some, _padded(block, columns), first, len(block), k=k)
        found.append([np.asarray(x)[: len(queries) - top] for x in best])
    cosine, index = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return cosine, index


def _unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale rows to length one; a row of zeros stays."""
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Add rows of zeros, so that every block compiles to one program."""
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def vote(
    cosine: Float[np.ndarray, "q k"], labels: Float[np.ndarray, "q k c"]
) -> Float[np.ndarray, "q c"]:
    """Return the weighted share of neighbours with each finding; NaN where none is known.

    labels: of the neighbours, as in records (1, 0, -1 uncertain, NaN unknown); the last two do not
    vote.
    """
    # Weights are divided by the largest of a row: only their ratios matter.
    weight = np.exp((cosine.astype(np.float64) - cosine[:, :1]) / TEMPERATURE)[:, :, None]
    known = (labels == 0) | (labels == 1)
    total = (weight * known).sum(axis=1)
    present = (weight * (labels == 1)).sum(axis=1)
    return np.where(total > 0, present / np.where(total > 0, total, 1), np.nan)


def scores(
    queries: Float[np.ndarray, "q d"],
    references: Float[np.ndarray, "n d"],
    labels: Float[np.ndarray, "n c"],
    *,
    ks: Sequence[int],
) -> Iterator[tuple[int, Float[np.ndarray, "q c"], int]]:
    """Yield (k, logits, scores without a vote) for each k.

    Where no neighbour votes, the score is the share of the references with the finding, or a half
    if it is known of none of them. labels: of the references, as in records.
    """
    cosine, index = nearest(queries, references, k=max(ks))
    known = ((labels == 0) | (labels == 1)).sum(axis=0)
    share = np.where(known > 0, (labels == 1).sum(axis=0) / np.maximum(known, 1), 0.5)
    for k in ks:
        parts = [slice(i, i + _VOTES) for i in range(0, len(queries), _VOTES)]
        votes = np.concatenate([vote(cosine[i, :k], labels[index[i, :k]]) for i in parts])
        silent = np.isnan(votes)
        votes = np.where(silent, share[None], votes)
        yield k, logit(np.clip(votes, _LEAST, 1 - _LEAST)), int(silent.sum())
