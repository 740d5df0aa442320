"""Scores of a set of generated texts: values, intervals over patients, and a signature for each.

A replicate draws patients with all their studies, as in scores/bootstrap.py. BLEU and METEOR are
computed from the replicate's summed counts, ROUGE-L and CIDEr are means over its studies. CIDEr's
document frequencies stay those of the whole set of references, in every replicate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from xmae_jax.scores import bootstrap
from xmae_jax.scores.predictions import numbered
from xmae_jax.scores.text import bleu, cider, java, meteor, rouge
from xmae_jax.scores.text.tokens import TOKENISERS, tokenise

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "meteor")
_SIGNED = {
    **{f"bleu{n}": f"BLEU-{n}|n:1-{n}|length:closest" for n in range(1, bleu.ORDERS + 1)},
    "rouge_l": f"ROUGE-L|beta:{rouge.BETA}",
    "cider": f"CIDEr-D|x10|n:1-{bleu.ORDERS}|sigma:{cider.SIGMA:g}",
    "meteor": "METEOR-1.5|-l en -norm",
}
_BLEU, _MEANS = slice(1, 1 + bleu.COUNTS), 1 + bleu.COUNTS  # columns; before them the studies
_METEOR = slice(_MEANS + 2, _MEANS + 2 + meteor.COUNTS)

References = Mapping[str, str | Sequence[str]]


class TextScoreError(ValueError):
    """Texts that cannot be scored; main exits 65."""


@dataclasses.dataclass(frozen=True)
class TextScoring:
    """What signatures tell: scores are comparable where these are the same."""

    tokeniser: str = "r2gen"
    sections: tuple[str, ...] = ("findings",)
    """What texts and references hold; told, not looked at, and so are these two."""
    normalisation: str = "none"
    marks: str = "keep"
    """What became of marks of de-identification."""
    cut: int | None = None
    """Tokens that are kept of texts and references in the second set of scores; None: no such."""
    meteor: bool = False
    """Whether Java is started for METEOR."""


class Scored(NamedTuple):
    """The studies of a set, and for each what is summed to give scores."""

    ids: tuple[str, ...]
    sums: Float64[np.ndarray, "s k"]
    signatures: dict[str, str]
    lacking: dict[str, str]
    """Why a score was not computed."""

    def each(self) -> dict[str, Float64[np.ndarray, " s"]]:
        """Score each study by itself; of BLEU the n-grams of one text are few, so look at many."""
        return values(self.sums)


def score(
    generated: Mapping[str, str],
    references: References,
    scoring: TextScoring,
    *,
    cut: int | None = None,
) -> Scored:
    """Score texts against the references of the same ids, in the order of `generated`.

    Raises TextScoreError where ids differ.
    """
    ids = tuple(generated)
    allowed = [_listed(references, one) for one in ids]
    if not ids or len(ids) != len(references):
        more = "no text" if not ids else f"{len(references) - len(ids)} references have no text"
        raise TextScoreError(more)
    texts = [generated[one] for one in ids] + [text for some in allowed for text in some]
    tokens = tokenise(texts, scoring.tokeniser, cut=cut)
    own, rest = tokens[: len(ids)], iter(tokens[len(ids) :])
    known = [[next(rest) for _ in some] for some in allowed]
    columns = [np.ones((len(ids), 1)), bleu.counts(own, known)]
    columns += [rouge.scores(own, known)[:, None], cider.scores(own, known)[:, None]]
    lacking, jar = {}, ""
    try:
        jar = _meteor_program(scoring)
        columns.append(meteor.counts(own, known))
    except java.NoJava as error:
        lacking["meteor"] = f"not computed: {error}"
    signatures = _signatures(scoring, allowed, cut=cut, jar=jar)
    return Scored(ids, np.concatenate(columns, axis=1), signatures, lacking)


def _listed(references: References, study: str) -> list[str]:
    if study not in references:
        raise TextScoreError(f"study {study} has no reference")
    found = references[study]
    found = [found] if isinstance(found, str) else list(found)
    if not found:
        raise TextScoreError(f"study {study} has an empty list of references")
    return found


def _meteor_program(scoring: TextScoring) -> str:
    """Return the digest of METEOR's jar; raise NoJava where METEOR is not to be computed."""
    if not scoring.meteor:
        raise java.NoJava("not asked for")
    if scoring.tokeniser == "characters":
        raise java.NoJava("METEOR 1.5 has no part for Chinese")
    return meteor.program()[1]


def _signatures(
    scoring: TextScoring, allowed: Sequence[Sequence[str]], *, cut: int | None, jar: str
) -> dict[str, str]:
    tokeniser = TOKENISERS[scoring.tokeniser]
    least, most = (end(map(len, allowed)) for end in (min, max))
    common = "|".join(
        [
            f"refs:{least}" + f"-{most}" * (most > least),
            f"tok:{scoring.tokeniser}.{tokeniser.version}",
            "case:lower",
            f"sections:{'+'.join(scoring.sections)}",
            f"norm:{scoring.normalisation}",
            f"marks:{scoring.marks}",
            f"cut:{'none' if cut is None else cut}",
        ]
    )
    own = {"cider": f"|df:{len(allowed)}", "meteor": f"|jar:{jar or 'none'}"}
    return {name: f"{_SIGNED[name]}{own.get(name, '')}|{common}" for name in NAMES}


def values(sums: Float64[np.ndarray, "*r k"]) -> dict[str, Float64[np.ndarray, "*r"]]:
    """Return each score of summed columns."""
    means = sums[..., _MEANS : _MEANS + 2] / sums[..., :1]
    of_bleu = bleu.scores(sums[..., _BLEU])
    out = {f"bleu{n + 1}": of_bleu[..., n] for n in range(bleu.ORDERS)}
    out |= {"rouge_l": means[..., 0], "cider": means[..., 1]}
    if sums.shape[-1] == _METEOR.stop:
        out["meteor"] = meteor.scores(sums[..., _METEOR])
    return out


def corpus_scores(
    generated: Mapping[str, str],
    references: References,
    scoring: TextScoring,
    *,
    patients: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return all scores, of whole texts and, with `scoring.cut`, of cut ones; for metrics.json.

    `patients` gives each study's patient; a study without one is a patient of its own.
    """
    parts = _parts(generated, references, scoring)
    people = _people(parts["full"].ids, patients)
    return {
        **_told(scoring, people),
        **{part: _entries(scored, people) for part, scored in parts.items()},
    }


def _parts(
    generated: Mapping[str, str], references: References, scoring: TextScoring
) -> dict[str, Scored]:
    cuts = {"full": None} | ({} if scoring.cut is None else {"cut": scoring.cut})
    return {part: score(generated, references, scoring, cut=cut) for part, cut in cuts.items()}


def _people(ids: Sequence[str], patients: Mapping[str, str] | None) -> Int64[np.ndarray, " s"]:
    of = patients or {}
    return numbered((of.get(one, ""), "" if of.get(one) else one) for one in ids)


def _told(scoring: TextScoring, people: Int64[np.ndarray, " s"]) -> dict[str, Any]:
    return {
        "scoring": dataclasses.asdict(scoring),
        "studies": len(people),
        "patients": int(people.max()) + 1,
        "bootstrap": {"replicates": bootstrap.REPLICATES, "seed": bootstrap.SEED},
    }


def _replicates(
    sums: Float64[np.ndarray, "s k"], people: Int64[np.ndarray, " s"]
) -> Float64[np.ndarray, "r k"]:
    return bootstrap.resample_sums(sums, people, people=int(people.max()) + 1)


def _interval(drawn: Float64[np.ndarray, " r"], people: Int64[np.ndarray, " s"]) -> Any:
    return bootstrap.interval(drawn) if people.max() else None


def _entries(scored: Scored, people: Int64[np.ndarray, " s"]) -> dict[str, Any]:
    found, drawn = values(scored.sums.sum(axis=0)), values(_replicates(scored.sums, people))
    out = {}
    for name in NAMES:
        entry: dict[str, Any] = {"value": None, "interval": None}
        if name in found:
            entry = {"value": float(found[name]), "interval": _interval(drawn[name], people)}
        why = {"why": scored.lacking[name]} if name in scored.lacking else {}
        out[name] = entry | why | {"signature": scored.signatures[name]}
    return out


def compare(
    first: Mapping[str, str],
    second: Mapping[str, str],
    references: References,
    scoring: TextScoring,
    *,
    patients: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return first minus second of two runs on the same studies; patients are drawn once for both.

    Raises TextScoreError where the two have not the same studies.
    """
    if first.keys() != second.keys():
        apart = len(first.keys() ^ second.keys())
        raise TextScoreError(f"{apart} studies have a text of one of the two only")
    second = {one: second[one] for one in first}
    both = [_parts(texts, references, scoring) for texts in (first, second)]
    people = _people(tuple(first), patients)
    out = _told(scoring, people)
    for part in both[0]:
        out[part] = _differences(both[0][part], both[1][part], people)
    return out


def _differences(one: Scored, other: Scored, people: Int64[np.ndarray, " s"]) -> dict[str, Any]:
    found = [values(scored.sums.sum(axis=0)) for scored in (one, other)]
    drawn = [values(_replicates(scored.sums, people)) for scored in (one, other)]
    out = {}
    for name in NAMES:
        if not all(name in each for each in found):
            out[name] = {"difference": None, "why": (one.lacking | other.lacking)[name]}
            continue
        pair = [float(each[name]) for each in found]
        out[name] = {
            "first": pair[0],
            "second": pair[1],
            "difference": pair[0] - pair[1],
            "interval": _interval(drawn[0][name] - drawn[1][name], people),
            "signature": one.signatures[name],
        }
    return out
