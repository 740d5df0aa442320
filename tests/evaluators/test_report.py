"""Rows of tokens to scores of reports: known numbers, all from the file alone, and the page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.scores.test_reports import written
from xmae_jax.data.text import Tokenizer
from xmae_jax.evaluators.report import Reporting, Study, table
from xmae_jax.evaluators.report_page import SHOWN, report_page
from xmae_jax.exports import card
from xmae_jax.scores.agreement import NAMES
from xmae_jax.scores.report_summary import compare, summarise
from xmae_jax.scores.reports import Reports, from_csv
from xmae_jax.scores.text.corpus import NAMES as TEXT_SCORES

NORMAL = "The heart size is normal. The lungs are clear."
TEXTS = [
    (NORMAL, NORMAL),
    ("Small left pleural effusion.", "Small left pleural effusion."),
    ("Small right pleural effusion.", "Large left pleural effusion. <b>No</b> pneumothorax."),
    ("", "The heart is enlarged."),
    (NORMAL, "Consolidation at the right base."),
]


class Letters:
    """Stands for a tokenizer; each character is a token."""

    def decode(self, ids) -> str:
        return "".join(chr(one) for one in ids if one > 1)


def row(place: int, text: str) -> dict:
    tokens = np.zeros(80, np.int32)
    tokens[: len(text)] = [ord(one) for one in text]
    return {"id": np.array([0, place]), "written": tokens, "has_image": np.array([True, False])}


def study(place: int, reference: str) -> Study:
    labels = [np.nan] * len(NAMES)
    labels[NAMES.index("Pleural Effusion")] = float("effusion" in reference)
    return Study(f"i{place}", f"p{place}", f"s{place}", "made", reference, tuple(labels))


def evaluator(texts=TEXTS, *, training=(NORMAL, "Another text.")) -> Reporting:
    studies = [study(i, reference) for i, (_, reference) in enumerate(texts)]
    letters = Tokenizer("", 0, None)
    object.__setattr__(letters, "decode", Letters().decode)
    return Reporting(
        letters, {"test": [studies]}, training, ("findings",), "drop_word", meteor=False
    )


def evaluated(texts=TEXTS, **more) -> tuple[dict, str]:
    rows = [row(i, text) for i, (text, _) in enumerate(texts)]
    return evaluator(texts, **more).evaluate({"test": rows.__iter__, "val": [].__iter__})


def test_numbers_are_those_of_the_file():
    metrics, text = evaluated()
    again = from_csv(text, name="predictions.csv")
    assert metrics.pop("about") == {"without_film": 0}
    assert summarise(again, "test", meteor=False) == metrics


def test_of_a_study_without_a_film_nothing_is_scored():
    rows = [row(i, text) for i, (text, _) in enumerate(TEXTS)]
    for one in rows[:2]:
        one["has_image"] = np.array([False, False])
    metrics, text = evaluator().evaluate({"test": rows.__iter__})
    assert (metrics["studies"], metrics["about"]) == (3, {"without_film": 2})
    assert "2 studies have no film" in table(metrics) and len(text.splitlines()) == 4
    metrics, text = evaluator().evaluate({"test": rows[:2].__iter__})
    assert metrics["studies"] == 0 and "2 studies have no film" in table(metrics)


def test_known_numbers():
    metrics, _ = evaluated()
    assert (metrics["studies"], metrics["patients"], metrics["without_reference"]) == (5, 5, 0)
    found = metrics["findings"]["uncertain_absent"]["findings"]
    assert (
        found["Pleural Effusion"] | {"tp": 2, "fp": 0, "fn": 0, "tn": 3}
        == (found["Pleural Effusion"])
    )
    assert found["Cardiomegaly"]["fn"] == 1 and found["Consolidation"]["fn"] == 1
    assert found["No Finding"]["tp"] == 1 and found["No Finding"]["fp"] == 1
    labels = metrics["labels"]["uncertain_absent"]
    assert labels["chexpert_14"]["micro"]["f1"] == 1.0  # only effusions are known
    sides = metrics["sides"]
    assert (sides["sided"], sides["found"], sides["same"]) == (3, 2, 1)
    own = metrics["originality"]["generated"]
    assert (own["copied"], own["distinct"], own["empty"]) == (2, 4, 1)
    assert metrics["originality"]["references"]["copied"] == 1
    assert 0 < metrics["text"]["full"]["bleu4"]["value"] < 1
    assert metrics["text"]["cut"]["bleu4"]["signature"].endswith(
        "sections:findings|norm:report-1|marks:drop_word|cut:59"
    )
    assert metrics["tokens"]["median"] == 29


def test_a_model_card_tells_the_scores():
    metrics, _ = evaluated()
    said = card.texts(metrics)
    value = metrics["text"]["full"]["bleu4"]["value"]
    assert "5 studies of 5 patients" in said and f"| bleu4 | {value:.3f} (" in said
    assert "| meteor | undefined |" in said and "| uncertain absent |" in said


def test_the_same_text_scores_one():
    metrics, _ = evaluated([(text, text) for _, text in TEXTS])
    for policy in metrics["findings"].values():
        assert policy["chexpert_14"]["micro"]["f1"] == 1.0
        assert policy["chexpert_14"]["macro"]["f1"] == 1.0
    assert metrics["sides"]["right"] == 1.0
    assert metrics["text"]["full"]["rouge_l"]["value"] == pytest.approx(1.0)


def test_studies_without_report_are_counted():
    metrics, _ = evaluated([*TEXTS, ("Effusion.", "")])
    assert (metrics["studies"], metrics["without_reference"]) == (5, 1)
    nothing, text = evaluated([("Effusion.", "")])
    assert nothing["studies"] == 0 and "(test)" in table(nothing)
    nothing["about"] = {"predictions": "p.csv"}
    page = report_page(from_csv(text, name=""), nothing, films=lambda study: [])
    assert "nothing is scored" in page


def test_training_that_is_not_known():
    metrics, _ = evaluated(training=None)
    assert metrics["originality"]["generated"]["copied"] is None
    assert "not known" in table(metrics)


def test_findings_of_chinese_reports_are_not_scored():
    texts = [("左侧胸腔积液。", "双肺未见异常。"), ("双肺清晰。", "双肺清晰。")]
    reports = Reports(
        tuple(written(i, text, reference=reference) for i, (text, reference) in enumerate(texts))
    )
    metrics = summarise(reports, "test", meteor=False)
    assert metrics["findings"] is metrics["labels"] is metrics["sides"] is None
    assert set(compare(reports, reports, "test", meteor=False)["scores"]) == set(TEXT_SCORES)
    assert "English" in metrics["why"] and "English" in table(metrics)
    metrics["about"] = {"predictions": "p.csv"}
    page = report_page(reports, metrics, films=lambda study: [])
    assert "English" in page and 'id="findings"' not in page and "nan" not in page


def test_table():
    lines = table(evaluated()[0])
    assert "reports of 5 studies of 5 patients (test)" in lines
    assert re.search(r"rouge_l +0\.\d{3} \(", lines) and "not computed" in lines


def test_draw(tmp_path):
    rows = [
        {
            **row(i, text),
            "text": row(i, reference)["written"],
            "image": np.zeros((2, 8, 8, 1), "u1"),
        }
        for i, (text, reference) in enumerate(TEXTS[:2])
    ]
    evaluator().draw(rows, tmp_path / "page.png", title="step 1")
    assert (tmp_path / "page.png").stat().st_size > 1000


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> str:
    # The last has the words, and not the finding.
    texts = [*TEXTS * 9, ("The heart is large today.", "The heart is not large today.")]
    metrics, text = evaluated(texts)
    metrics["about"] = {
        "data": ["<data>"],
        "run": "runs/<x>",
        "step": 3,
        "leaks": {},
        "unreadable": 2,
    }
    film = np.full((600, 400), 128, np.uint8)
    reports = from_csv(text, name="")
    return report_page(reports, metrics, films=lambda study: [film] * (study.place % 3))


def test_page_escapes_and_fetches_nothing(page):
    found = _Page(page)
    assert "&lt;b&gt;No&lt;/b&gt;" in page and "<b>" not in page and "runs/&lt;x&gt;" in page
    assert not {"script", "link", "iframe"} & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        address = attributes.get("src") or attributes.get("href") or "#"
        assert address.startswith(("#", "data:image/jpeg;base64,")), tag


def test_page_shows_best_and_worst(page):
    assert page.count('<article class="study">') == 2 * SHOWN
    best, worst = page.split('id="worst"')
    for part, sign in ((best, -1), (worst, 1)):
        scores = re.findall(r"F1 (0\.\d+|1\.0+), ROUGE-L ([\d.]+) <", part)
        scores = [(sign * float(f1), sign * float(rouge)) for f1, rouge in scores]
        assert scores == sorted(scores) and len(scores) == SHOWN
    assert 'alt="film 2 of study' in best and "no film" in best
    assert "1. F1 1.000, ROUGE-L 1.000" in best and "1. F1 0.000, ROUGE-L 0.000" in worst
    assert '<span class="chip missed">Cardiomegaly</span>' in worst
    assert "Pleural Effusion (right, not left)" in page and "<dd>drop word</dd>" in page
    assert "damaged: 2 studies" in page
    assert "<code>predictions.csv</code> beside this page" in page


def test_page_names_the_file_that_it_is_made_of():
    metrics, text = evaluated()
    metrics["about"] = {"predictions": "some/p.csv"}
    page = report_page(from_csv(text, name=""), metrics, films=lambda study: [])
    assert "from <code>some/p.csv</code>." in page and "beside this page" not in page
