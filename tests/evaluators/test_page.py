"""The results page: it says what a reader must know, escapes all of it, and fetches nothing."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.scores.made import predictions
from tests.scores.test_summary import TRAIN, both_splits
from xmae_jax.evaluators.page import results_page
from xmae_jax.scores import curves
from xmae_jax.scores.compare import compare
from xmae_jax.scores.summary import summarise

ABOUT = {"data": ["shards"], "run": "runs/x", "step": 40, "leaks": {}, "unreadable_films": 0}


def page(metrics, made, **about):
    return results_page(made, {**metrics, "about": ABOUT | about})


class Tags(HTMLParser):
    """Sees that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag not in ("meta", "br", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def made():
    both, _, test = both_splits(findings=("Edema", "<b>Mass</b>", "Hernia"))
    both.labels[150:, 2][both.labels[150:, 2] == 1] = 0
    metrics = summarise(both, "test", train_positive=TRAIN)
    return both, {**metrics, "against": {"file": "other.csv", **compare(both, both, "test")}}


def test_what_it_says(made):
    both, metrics = made
    text = page(metrics, both, leaks={"near copy": 2}, unreadable_films=3)
    shown = " ".join(re.sub(r"<[^>]+>", " ", text.partition("<body>")[2]).split())
    for told in (
        "step 40 of runs/x", "50 patients, 100 studies, 150 films", "150 films of the split val",
        "not refused: 2 × near copy", "their records are damaged: 3 films",
        "all films are on one side: Hernia", "head more than 1,000", "undefined", "mean of 2 of 3",
        "other.csv", "By age", "100 studies in place of 150 films",
    ):  # fmt: skip
        assert told in shown, told
    edema = metrics["findings"]["Edema"]
    assert f"{edema['auroc']:.3f} {edema['auroc_interval'][0]:.3f} to" in shown


def test_it_is_whole_and_fetches_nothing(made):
    text = page(made[1], made[0])
    tags = Tags(text)
    assert tags.names.count("svg") >= 2 * 3 and "script" not in tags.names
    assert "<b>Mass" not in text and "&lt;b&gt;Mass" in text
    assert not re.search(r"(src|href)=\"(?!#)", text) and "://" not in text
    assert "nan" not in text.lower().replace("nanos", "")


def test_a_file_alone_and_films_of_validation(made):
    both, metrics = made
    text = results_page(both, {**metrics, "about": {"predictions": "a.csv"}})
    assert "a.csv" in text and "Films in training too" not in text
    val = page(summarise(both, "val"), both, leaks=None)
    assert "chosen on the very films" in val and "not looked for" in val


def test_films_of_training_are_called_so_by_data_and_not_by_name(made):
    both, metrics = made
    called = {**metrics, "split": "train", "films": 0}
    films = tuple(film._replace(split="train") for film in both.films)
    both = dataclasses.replace(both, films=films)
    words = "These films are those of training"
    assert words not in page(called, both, of_training=[])
    told = page(called, both, of_training=["shards"])
    assert words in told and "all of shards" in told
    alone = results_page(both, {**called, "about": {"predictions": "a.csv"}})
    assert words not in alone and "If the model was trained on these films" in alone
    assert "said before is not there" in page(
        {**called, "chosen_on": {"split": "val", "films": 0}}, both, refitted_on="val"
    )


def test_few_films_make_a_page_too():
    for few in (predictions(0), predictions(1), predictions(30)):
        text = page(summarise(few, "test"), few)
        Tags(text)
        assert "There are none: no film of the split val" in text and "nan" not in text


def test_curves_pass_through_what_thresholds_give():
    draw = np.random.default_rng(0)
    labels = draw.random(300) < 0.3
    scores = np.round(draw.normal(size=300) + labels, 1)
    roc, pr = curves.roc(scores, labels), curves.precision_recall(scores, labels)
    np.testing.assert_array_equal(roc[[0, -1]], [[0, 0], [1, 1]])
    called = scores >= 1.0
    recall, wrong = called[labels].mean(), called[~labels].mean()
    assert np.abs(roc - [wrong, recall]).sum(axis=1).min() < 1e-12
    assert np.abs(pr - [recall, labels[called].mean()]).sum(axis=1).min() < 1e-12
    assert pr[-1, 0] == 1
    area = np.trapezoid(roc[:, 1], roc[:, 0])
    assert area == pytest.approx(roc_auc_score(labels, scores))


def test_long_curves_are_thinned_and_keep_their_ends():
    points = np.stack([np.linspace(0, 1, 20_000), np.linspace(0, 1, 20_000) ** 0.3], axis=1)
    thin = curves.thinned(points)
    assert len(thin) <= 162
    np.testing.assert_array_equal(thin[[0, -1]], points[[0, -1]])
    between = np.interp(points[:, 0], thin[:, 0], thin[:, 1])
    assert np.abs(between - points[:, 1]).max() < 0.01
