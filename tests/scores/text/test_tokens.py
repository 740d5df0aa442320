"""What each tokeniser makes of a text."""

import pytest

from xmae_jax.scores.text.tokens import tokenise


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The heart is NORMAL. No (focal) mass...", "the heart is normal . no focal mass ."),
        ("1. Heart size normal.  2. Clear lungs.", "heart size normal . clear lungs ."),
        ('3.5 cm; "mild" L/R mid-zone it\'s.', "35 cm mild lr mid-zone its ."),
        ("XXXX right base.\nNo effusion", "xxxx right base . no effusion ."),
        ("Clear lungs .", "clear lungs ."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_r2gen_cleans(text, tokens):
    assert tokenise([text], "r2gen") == [tokens]
    # What is clean stays as it is, so texts of a model trained on clean ones are not changed.
    assert tokenise([tokens], "r2gen") == [tokens]


def test_chinese_is_cut_into_characters():
    assert tokenise(["心影增大,约15mm。 CT 片"], "characters") == ["心 影 增 大 , 约 15mm 。 ct 片"]
    spaced = "心 影 增 大"
    assert tokenise([spaced], "characters") == [spaced]


def test_texts_are_cut_to_tokens():
    assert tokenise(["A b. C d.", "", "a"], "r2gen", cut=3) == ["a b .", "", "a ."]
