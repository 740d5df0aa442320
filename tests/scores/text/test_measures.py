"""Each measure on texts that can be worked out by hand; tests/parity has real ones."""

import numpy as np
import pytest

from xmae_jax.scores.text import bleu, cider, meteor, rouge


def table(one, other):
    """Return the length of the longest common subsequence, by the whole table."""
    rows = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            same = rows[i - 1, j - 1] + 1
            rows[i, j] = same if a == b else max(rows[i - 1, j], rows[i, j - 1])
    return rows[-1, -1]


def test_bleu_by_hand():
    counts = bleu.counts(["the the the heart"], [["the heart is", "the heart is of normal size"]])
    # Clipped: `the` counts once, "the heart" once. Of 3 and 6 words, 3 is nearer to 4.
    assert counts.tolist() == [[4, 3, 4, 3, 2, 1, 2, 1, 0, 0]]
    found = bleu.scores(counts)[0]
    assert found[:2] == pytest.approx([1 / 2, np.sqrt(1 / 2 * 1 / 3)])
    assert found[2:].max() < 1e-4
    short = bleu.scores(bleu.counts(["the heart"], [["the heart is large"]]))[0]
    assert short[0] == pytest.approx(np.exp(1 - 4 / 2))


def test_the_shorter_of_two_equally_close_references_counts():
    for references in (["a b", "a b c d"], ["a b c d", "a b"]):
        assert bleu.counts(["a b c"], [references])[0, 1] == 2


def test_bleu_of_a_set_is_of_its_counts():
    texts, references = ["a b c d e", "a x"], [["a b c d f"], ["a b"]]
    sums = bleu.counts(texts, references).sum(axis=0)
    assert bleu.scores(sums)[0] == pytest.approx(5 / 7)
    assert bleu.scores(sums)[1] == pytest.approx(np.sqrt(5 / 7 * 3 / 5))


def test_rouge_by_hand():
    found = rouge.scores(["a b c d"], [["a c x", "d"]])
    precision, recall = 2 / 4, 1.0
    wanted = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert found == pytest.approx([wanted])
    assert rouge.scores(["", "a", "", "b a"], [["a"], ["b"], [""], ["b a"]]).tolist() == [
        0.0, 0.0, 1.0, pytest.approx(1.0)]  # fmt: skip


def test_common_length_against_the_whole_table():
    draw = np.random.default_rng(0)
    for _ in range(200):
        one, other = (list(draw.choice(list("abcd"), draw.integers(0, 90))) for _ in range(2))
        assert rouge.common_length(one, other) == table(one, other)


def test_cider_by_hand():
    references = [["a b"], ["a c"], ["d e"]]
    alike = cider.scores(["a b", "a c", "d e"], references)
    # No text has 3 words, so two of four orders are 0 and the others 1.
    assert alike == pytest.approx([5.0, 5.0, 5.0])
    weight = {"a": np.log(3 / 2), "b": np.log(3)}
    norm = np.hypot(weight["a"], weight["b"])
    one = cider.scores(["b b", "x", "y"], references)[0]
    # b twice counts once; its norm has it twice; no pair is common, lengths are equal.
    assert one == pytest.approx(10 / 4 * weight["b"] ** 2 / (norm * 2 * weight["b"]))
    # One word longer than the reference.
    longer = cider.scores(["a b z", "x", "y"], references)[0]
    cosine = norm / np.sqrt(norm**2 + np.log(3) ** 2)
    wanted = 10 / 4 * (cosine + 1 / np.sqrt(2)) * np.exp(-1 / 72)
    assert longer == pytest.approx(wanted)


def test_cider_of_one_study_is_0():
    assert cider.scores(["a b c d e"], [["a b c d e"]]).tolist() == [0.0]


def test_cider_averages_over_references():
    references = [["a b", "c d"], ["e f"]]
    two = cider.scores(["a b", "e f"], references)
    assert two == pytest.approx([2.5, 5.0])


def test_meteor_of_counts():
    """7 words each, 4 of them function words; 3 content and 3 function words match, 3 pieces."""
    counts = np.zeros((2, meteor.COUNTS))
    counts[0, :8] = [7, 7, 4, 4, 3, 3, 3, 3]
    counts[0, 20:] = [3, 6, 6]
    both = (0.75 * 3 + 0.25 * 3) / (0.75 * 3 + 0.25 * 4)
    wanted = both * (1 - 0.6 * (3 / 6) ** 0.2)
    assert meteor.scores(counts) == pytest.approx([wanted, 0.0])
    assert meteor.scores(counts.sum(axis=0)) == pytest.approx(wanted)
