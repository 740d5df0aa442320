"""`predictions.csv` of reports: what is written comes back, and what is wrong is named."""

import csv
import io

import numpy as np
import pytest

from xmae_jax.scores.agreement import NAMES
from xmae_jax.scores.predictions import PredictionsError
from xmae_jax.scores.reports import COLUMNS, Written, from_csv, is_header, to_csv

UNKNOWN = tuple([np.nan] * len(NAMES))
NASTY = [
    'A "quoted", comma',
    "two\nlines",
    "=1+1",
    "胸片未见异常。",
    "",
    " blanks ",
    "a\r\nb",
    "\ttab",
]


def written(place: int, generated: str, reference: str = "No effusion.", **more) -> Written:
    known = {
        "split": "test",
        "source_index": 0,
        "place": place,
        "id": f"i{place}",
        "patient": f"p{place // 2}",
        "study": f"s{place}",
        "source": "made",
        "sections": "findings",
        "normalisation": "report-1",
        "marks": "drop_word",
        "tokens": 7,
        "generated_known": None,
        "reference_known": None,
        "labels": UNKNOWN,
    }
    return Written(**{**known, **more, "generated": generated, "reference": reference})


def test_comes_back():
    labels = np.full((len(NASTY), len(NAMES)), np.nan)
    labels[:, :3] = [1, 0, -1]
    studies = [
        written(i, text, text[::-1], labels=tuple(labels[i]), generated_known=flag)
        for i, (text, flag) in enumerate(zip(NASTY, [True, False, None] * 3, strict=False))
    ]
    text = to_csv(studies)
    found = from_csv(text, name="p.csv")
    for one, other in zip(studies, found.studies, strict=True):
        assert one._replace(labels=()) == other._replace(labels=())
    np.testing.assert_array_equal(found.labels, labels)
    assert to_csv(found.studies) == text
    assert found.patients().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert is_header(text.splitlines()[0]) and not is_header("split,id,logit:Edema")


def broken(column: str, value: str) -> str:
    rows = list(csv.reader(io.StringIO(to_csv([written(0, "a"), written(1, "b")]))))
    rows[2][rows[0].index(column)] = value
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "without split"),
        ("split,id\n", "without source_index"),
        (to_csv([]), "no study"),
        (to_csv([written(0, "a"), written(0, "b")]), "line 3: the study of line 2 again"),
        (to_csv([written(0, "a")]) + "x\n", "line 3: 1 values"),
        (broken("tokens", "secret"), "line 3: source_index, index or tokens is no number"),
        *[
            (broken("split", name), "line 3, split: not 1 to 64 letters")
            for name in ("../secret", ".secret", "/secret", "secret secret", "s" * 65, "")
        ],
        (broken("tokens", "-3"), "line 3: source_index, index or tokens is no number"),
        (broken("tokens", "1" * 400), "line 3: source_index, index or tokens is no number"),
        (broken("generated_in_training", "secret"), "line 3, generated_in_training: none of"),
        (broken("label:Edema", "secret"), "line 3, label:Edema: none of"),
        (to_csv([written(0, "a")]) + '"open', "not CSV"),
    ],
)
def test_what_is_wrong_is_named(text, told):
    with pytest.raises(PredictionsError, match=told) as error:
        from_csv(text, name="p.csv")
    assert str(error.value).startswith("p.csv") and "secret" not in str(error.value)


@pytest.mark.parametrize("line", ["a,generated\rb", "x" * 200_000, "", '"'])
def test_what_is_no_csv_is_no_header(line):
    assert not is_header(line)


def test_columns_stand_first():
    assert to_csv([]).startswith(",".join(COLUMNS) + ",label:")
