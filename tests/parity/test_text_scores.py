"""Scores of text against pycocoevalcap's own, on real reports and at the edges.

Without pycocoevalcap, without Java or without the real reports the tests that need them are
skipped by name: `pip install pycocoevalcap` (docs/report_scores.md tells its terms).
"""

import csv
import shutil

import numpy as np
import pytest

from xmae_jax.scores.text import bleu, cider, corpus, java, meteor, rouge
from xmae_jax.scores.text.tokens import tokenise

pytest.importorskip("pycocoevalcap.bleu.bleu")
PAIRS = 400
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not there")


def theirs(own: list[str], known: list[list[str]]) -> dict[str, tuple[float, np.ndarray]]:
    """Score a set by pycocoevalcap: the set's score and each text's."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts, res = dict(enumerate(known)), {i: [text] for i, text in enumerate(own)}
    sets, texts = Bleu(4).compute_score(gts, res, verbose=0)
    out = {f"bleu{n + 1}": (sets[n], np.array(texts[n])) for n in range(4)}
    out["rouge_l"] = Rouge().compute_score(gts, res)
    out["cider"] = Cider().compute_score(gts, res)
    return out


def assert_same(own: list[str], known: list[list[str]]) -> dict[str, tuple[float, np.ndarray]]:
    """Compare ours of texts of tokens, each by itself and together, within 1e-9."""
    wanted = theirs(own, known)
    counts = bleu.counts(own, known)
    together, each = bleu.scores(counts.sum(axis=0)), bleu.scores(counts)
    found = {f"bleu{n + 1}": (together[n], each[:, n]) for n in range(4)}
    for name, texts in (("rouge_l", rouge.scores(own, known)), ("cider", cider.scores(own, known))):
        found[name] = (texts.mean(), texts)
    for name, (whole, texts) in wanted.items():
        assert found[name][0] == pytest.approx(whole, abs=1e-9), name
        np.testing.assert_allclose(found[name][1], texts, atol=1e-9, err_msg=name)
    return wanted


@pytest.fixture(scope="module")
def pairs(cxr) -> list[tuple[str, str]]:
    """Pair real reports, each with the next one that has the same findings."""
    with (cxr / "reports.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"].strip()]
    labels = [name for name in rows[0] if name[0].isupper()]
    last: dict[tuple[str, ...], str] = {}
    found = []
    for row in rows:
        kind = tuple(row[name] for name in labels)
        if kind in last:
            found.append((row["findings"], last[kind]))
        last[kind] = row["findings"]
    # Every fourth of them: the order of the file has normal ones and others mixed.
    chosen = found[::4][:PAIRS]
    assert len(chosen) >= 200
    return chosen


@pytest.mark.parametrize("tokeniser", ["r2gen", "characters"])
def test_real_pairs(pairs, tokeniser):
    own, other = (tokenise([pair[k] for pair in pairs], tokeniser) for k in (0, 1))
    wanted = assert_same(own, [[text] for text in other])
    assert 0.02 < wanted["bleu4"][0] < 0.6 and wanted["cider"][0] > 0.05
    cut = [tokenise([pair[k] for pair in pairs], tokeniser, cut=29) for k in (0, 1)]
    assert_same(cut[0], [[text] for text in cut[1]])


def test_several_references(pairs):
    own, other = (tokenise([pair[k] for pair in pairs], "r2gen") for k in (0, 1))
    several = [other[i : i + 1 + i % 3] for i in range(len(other))]
    assert_same(own, several)


def test_the_public_function_has_the_same_numbers(pairs):
    generated = {str(i): one for i, (one, _) in enumerate(pairs)}
    references = {str(i): other for i, (_, other) in enumerate(pairs)}
    found = corpus.corpus_scores(generated, references, corpus.TextScoring(cut=29))
    for part, cut in (("full", None), ("cut", 29)):
        own, other = (tokenise([pair[k] for pair in pairs], "r2gen", cut=cut) for k in (0, 1))
        for name, (value, _) in theirs(own, [[text] for text in other]).items():
            assert found[part][name]["value"] == pytest.approx(value, abs=1e-9)


EDGES = {
    "empty texts": (["", "a b", ""], [["a b c"], ["a b"], ["d"]]),
    "all empty": (["", ""], [["a b c"], ["a"]]),
    "one report": (["a b c d e"], [["a b c d f"]]),
    "one empty report": ([""], [["a"]]),
    "identical": (["a b c d e", "f g h i", "j"], [["a b c d e"], ["f g h i"], ["j"]]),
    "one word": (["a", "b", "c"], [["a"], ["a"], ["c d"]]),
    "an empty reference": (["", "a", "b c"], [[""], [""], ["b c"]]),
    "equally close references": (["a b c", "x"], [["a b", "a b c d", "a"], ["x y", ""]]),
    "words again and again": (["a a a a a a", "b b"], [["a a b"], ["b b b b"]]),
    "nothing in common": (["a b c d", "e f g h"], [["i j k l"], ["m n o p"]]),
    "Chinese": (["心 影 增 大", "双 肺 清 晰"], [["心 影 不 大"], ["双 肺 纹 理 增 多"]]),
    "Chinese words": (["心影增大", "双肺 清晰"], [["心影增大"], ["双肺 清晰"]]),
    "long beside short": ([" ".join("abcdefgh" * 30), "a"], [["a b"], [" ".join("xyz" * 40)]]),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    own, known = EDGES[name]
    wanted = assert_same(own, known)
    if name == "one report":
        assert wanted["cider"][0] == 0
    if name == "identical":
        assert wanted["rouge_l"][0] == pytest.approx(1)


@needs_java
@pytest.mark.slow
def test_meteor_on_real_pairs_and_at_the_edges(pairs):
    from pycocoevalcap.meteor.meteor import Meteor

    sets = [EDGES[name] for name in EDGES if "Chinese" not in name]
    own, other = (tokenise([pair[k] for pair in pairs], "r2gen") for k in (0, 1))
    several = [other[i : i + 1 + (i % 5 == 0)] for i in range(len(other))]
    sets.append((own, several))
    # With copies among the texts, which the program sums in another way.
    sets.append(([some[0] if i % 9 else own[i] for i, some in enumerate(several)], several))
    counts = meteor.counts(*([one for some in sets for one in some[k]] for k in (0, 1)))
    program, first = Meteor(), 0
    for texts, known in sets:
        gts, res = dict(enumerate(known)), {i: [text] for i, text in enumerate(texts)}
        whole, each = program.compute_score(gts, res)
        ours = counts[first : first + len(texts)]
        first += len(texts)
        assert meteor.scores(ours.sum(axis=0)) == pytest.approx(whole, abs=1e-9)
        np.testing.assert_allclose(meteor.scores(ours), each, atol=1e-9)


@needs_java
@pytest.mark.slow
def test_meteor_in_a_set(pairs):
    generated = {str(i): one for i, (one, _) in enumerate(pairs[:40])}
    references = {str(i): other for i, (_, other) in enumerate(pairs[:40])}
    found = corpus.corpus_scores(generated, references, corpus.TextScoring(meteor=True))
    entry = found["full"]["meteor"]
    low, high = entry["interval"]
    assert low < entry["value"] < high and "why" not in entry
    assert "|jar:" in entry["signature"] and "jar:none" not in entry["signature"]
    assert java.jar("meteor/meteor-1.5.jar").is_file()
