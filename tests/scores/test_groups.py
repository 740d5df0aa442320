"""Groups of findings and films: their edges, and studies of several films."""

import numpy as np
import pytest

from tests.scores.made import film, predictions
from xmae_jax.scores import groups
from xmae_jax.scores.predictions import Predictions

NAN = np.nan


@pytest.mark.parametrize(
    ("count", "name"),
    [(1001, "head"), (1000, "medium"), (100, "medium"), (99, "tail"), (0, "tail")],
)
def test_frequency(count, name):
    assert groups.frequency(float(count)) == name


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0-17"), (17.9, "0-17"), (18, "18-39"), (40, "40-59"), (59.9, "40-59"), (60, "60-79"),
        (80, "80+"), (90, "80+"), (NAN, "unknown"),
    ],
)  # fmt: skip
def test_age_bands(age, band):
    assert groups.age_band(float(age)) == band


def test_members_cover_every_film_once():
    made = predictions(50)
    for attribute in groups.ATTRIBUTES:
        members = groups.members(made, attribute)
        assert (sum(rows.astype(int) for rows in members.values()) == 1).all()
    assert list(groups.members(made, "sex")) == ["F", "M", "unknown"]
    assert groups.members(made, "view")["L"].nonzero()[0].tolist() == list(range(2, 50, 3))


def test_films_of_a_study_are_joined():
    labels = np.array([[1, 0, 0, NAN], [0, 0, -1, NAN], [NAN, 0, NAN, 1], [0, 1, -1, NAN]])
    logits = np.arange(16.0).reshape(4, 4)
    films = (film(0), film(1), film(0, place=2, id="id2"), film(3, study=""))
    made, _ = groups.by_study(Predictions(("a", "b", "c", "d"), films, logits, labels))
    assert [one.id for one in made.films] == ["id0", "id3"]
    np.testing.assert_array_equal(made.logits, [logits[:3].mean(axis=0), logits[3]])
    # Present in one; absent in all; uncertain in one; unknown but in one.
    np.testing.assert_array_equal(made.labels, [[1, 0, -1, 1], [0, 1, -1, NAN]])
    np.testing.assert_array_equal(made.patients(), [0, 1])


def test_three_frontal_films_do_not_outvote_a_lateral_one():
    views = ("PA", "AP", "Frontal", "LATERAL", "PA", "", "LL")
    films = tuple(
        film(i, view=view, patient="p", study="one" if i < 4 else f"s{i // 6}")
        for i, view in enumerate(views)
    )
    logits = np.array([[1.0], [2.0], [3.0], [-4.0], [5.0], [6.0], [7.0]])
    made, by_view = groups.by_study(Predictions(("a",), films, logits, np.zeros((7, 1))))
    np.testing.assert_allclose(made.logits[:, 0], [(2 - 4) / 2, 5.5, 7])
    np.testing.assert_array_equal(by_view, [[3, 1], [2, 0], [0, 1]])
