"""Scores of a set: intervals against replicates written out, pairs, signatures, refusals."""

import json

import numpy as np
import pytest

from xmae_jax.scores import bootstrap
from xmae_jax.scores.text import bleu, cider, rouge
from xmae_jax.scores.text.corpus import NAMES, TextScoreError, TextScoring, compare, corpus_scores
from xmae_jax.scores.text.corpus import score as score_set
from xmae_jax.scores.text.corpus import values as values_of

WORDS = "heart lungs clear normal large effusion left right no is".split()
PLAIN = TextScoring(tokeniser="characters")


def texts(studies: int, seed: int) -> dict[str, str]:
    draw = np.random.default_rng(seed)
    return {f"s{i}": " ".join(draw.choice(WORDS, draw.integers(4, 15))) for i in range(studies)}


def noisy(references: dict[str, str], seed: int, rate: float) -> dict[str, str]:
    draw = np.random.default_rng(seed)
    return {
        key: " ".join(w if draw.random() > rate else "x" for w in text.split())
        for key, text in references.items()
    }


def written_out(generated, references, counts, people):
    """Score a replicate by repeating its studies; CIDEr with the frequencies of the whole set."""
    rows = [i for i, one in enumerate(people) for _ in range(counts[one])]
    keys = list(generated)
    own, known = [generated[keys[i]] for i in rows], [[references[keys[i]]] for i in rows]
    whole = cider.scores(list(generated.values()), [[references[k]] for k in keys])
    return [
        *bleu.scores(bleu.counts(own, known).sum(axis=0)),
        rouge.scores(own, known).mean(),
        whole[rows].mean(),
    ]


def test_intervals_by_replicates_written_out():
    references = texts(24, 0)
    one, other = noisy(references, 1, 0.2), noisy(references, 2, 0.4)
    patients = {key: f"p{i // 2}" for i, key in enumerate(references) if i < 20}
    people = [i // 2 if i < 20 else i - 10 for i in range(24)]
    counts = np.concatenate(list(bootstrap.draws(14, replicates=bootstrap.REPLICATES)))
    drawn = np.array([
        [written_out(some, references, row, people) for some in (one, other)]
        for row in counts[:150]
    ])  # fmt: skip
    sums = [score_set(some, references, PLAIN).sums for some in (one, other)]
    for k in range(2):
        ours = values_of(bootstrap.resample_sums(sums[k], np.array(people), people=14))
        for n, name in enumerate(NAMES[:6]):
            np.testing.assert_allclose(ours[name][:150], drawn[:, k, n], rtol=1e-9)
    found = corpus_scores(one, references, PLAIN, patients=patients)
    assert (found["studies"], found["patients"]) == (24, 14)
    for name in NAMES[:6]:
        entry = found["full"][name]
        low, high = entry["interval"]
        ours = values_of(bootstrap.resample_sums(sums[0], np.array(people), people=14))[name]
        assert [low, high] == pytest.approx(np.percentile(ours, [2.5, 97.5]))
        assert low < entry["value"] < high
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))


def test_pairs_are_narrower_and_the_same_run_is_0():
    references = texts(60, 3)
    one = noisy(references, 1, 0.3)
    other = {key: text + " x" for key, text in reversed(one.items())}
    found = compare(one, other, references, PLAIN)["full"]
    alone = corpus_scores(one, references, PLAIN)["full"]
    for name in NAMES[:6]:
        entry = found[name]
        assert entry["first"] == alone[name]["value"]
        assert entry["difference"] == entry["first"] - entry["second"] != 0
        assert np.ptp(entry["interval"]) < np.ptp(alone[name]["interval"])
        assert entry["signature"] == alone[name]["signature"]
        low, high = entry["interval"]
        assert low <= entry["difference"] <= high
    assert found["meteor"] == {"difference": None, "why": "not computed: not asked for"}
    same = compare(one, one, references, PLAIN)["full"]
    assert all(same[name]["interval"] == [0.0, 0.0] for name in NAMES[:6])


def test_cut_texts_are_scored_beside_whole_ones():
    references = {"a": "one two three four", "b": "five six seven eight"}
    generated = {"a": "one two x y", "b": "five six z"}
    scoring = TextScoring(tokeniser="characters", cut=2, sections=("findings", "impression"))
    found = corpus_scores(generated, references, scoring)
    assert found["cut"]["bleu1"]["value"] == pytest.approx(1.0)
    assert found["full"]["bleu1"]["value"] == pytest.approx(4 / 7 * np.exp(1 - 8 / 7))
    assert found["cut"]["bleu4"]["signature"] == (
        "BLEU-4|n:1-4|length:closest|refs:1|tok:characters.1|case:lower"
        "|sections:findings+impression|norm:none|marks:keep|cut:2"
    )
    assert found["full"]["cider"]["signature"] == (
        "CIDEr-D|x10|n:1-4|sigma:6|df:2|refs:1|tok:characters.1|case:lower"
        "|sections:findings+impression|norm:none|marks:keep|cut:none"
    )
    assert "cut" not in corpus_scores(generated, references, PLAIN)


def test_order_and_a_single_study():
    references = texts(9, 4)
    one = noisy(references, 5, 0.3)
    turned = dict(reversed(one.items()))
    for name in NAMES[:6]:
        values = [corpus_scores(x, references, PLAIN)["full"][name]["value"] for x in (one, turned)]
        assert values[0] == pytest.approx(values[1], rel=1e-12)
    alone = corpus_scores({"a": "x y"}, {"a": ["x y", "y"]}, PLAIN)
    assert alone["full"]["bleu2"]["interval"] is None
    assert alone["full"]["cider"]["value"] == 0.0
    assert "refs:2|" in alone["full"]["cider"]["signature"]


def test_empty_texts_score_nothing():
    references = texts(5, 6)
    found = corpus_scores(dict.fromkeys(references, ""), references, PLAIN)["full"]
    for name in NAMES[:6]:
        assert found[name]["value"] == pytest.approx(0.0, abs=1e-12)


def test_each_study_has_its_own_score():
    references = {"a": "w x y z", "b": "q r s t"}
    each = score_set({"a": "w x y z", "b": "x"}, references, PLAIN).each()
    assert set(each) == set(NAMES[:6])
    assert each["bleu4"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert each["rouge_l"] == pytest.approx([1.0, 0.0])
    assert each["cider"] == pytest.approx([10.0, 0.0])


def test_meteor_is_not_computed_and_says_why(monkeypatch):
    references = texts(3, 7)
    chinese = TextScoring(tokeniser="characters", meteor=True)
    entry = corpus_scores(references, references, chinese)["full"]["meteor"]
    assert entry["value"] is None and "no part for Chinese" in entry["why"]
    monkeypatch.setenv("PATH", "")
    asked = TextScoring(meteor=True)
    entry = corpus_scores(references, references, asked)["full"]["meteor"]
    assert entry["value"] is entry["interval"] is None
    assert entry["why"] == "not computed: java is not there"
    assert "|jar:none|" in entry["signature"]


@pytest.mark.parametrize(
    ("generated", "references", "message"),
    [
        ({}, {}, "no text"),
        ({"a": "x"}, {"b": "x"}, "study a has no reference"),
        ({"a": "x"}, {"a": []}, "study a has an empty list"),
        ({"a": "x"}, {"a": "x", "b": "y"}, "1 references have no text"),
    ],
)
def test_ids_that_differ_are_refused(generated, references, message):
    with pytest.raises(TextScoreError, match=message):
        corpus_scores(generated, references, PLAIN)


def test_runs_of_other_studies_are_refused():
    with pytest.raises(TextScoreError, match="2 studies have a text of one of the two only"):
        compare({"a": "x"}, {"b": "x"}, {"a": "x"}, PLAIN)
