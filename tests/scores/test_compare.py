"""Two sets of predictions: common films, paired replicates, and what cannot be compared."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tests.scores.made import auroc_by_pairs, predictions
from tests.scores.test_delong import brute_force
from xmae_jax.scores import bootstrap
from xmae_jax.scores.compare import compare
from xmae_jax.scores.predictions import Predictions, PredictionsError
from xmae_jax.scores.summary import summarise


def two(films=90):
    """Make a model and a worse one with films in another order, some lacking, findings too."""
    one = predictions(films, ties=False)
    noise = np.random.default_rng(5).normal(size=one.logits.shape)
    order = np.random.default_rng(6).permutation(films)[: films - 9]
    other = Predictions(one.findings, one.films, one.logits + noise, one.labels).take(order)
    columns = [1, 0]
    other = Predictions(
        ("Mass", "Edema"), other.films, other.logits[:, columns], other.labels[:, columns]
    )
    return one, other, np.sort(order)


def test_differences_by_replicates_written_out():
    one, other, rows = two()
    found = compare(one, other, "test")
    assert found["films"] == 81 and found["films_of_each"] == [90, 81]
    assert list(found["findings"]) == ["Edema", "Mass"]
    common = one.take(rows)
    place = {film.id: i for i, film in enumerate(other.films)}
    partner = other.take(np.array([place[film.id] for film in common.films]))
    patients = common.patients()
    known = common.known[:, 0]
    labels = common.labels[:, 0] == 1
    scores = common.logits[:, 0], partner.logits[:, 1]
    values = [roc_auc_score(labels[known], score[known]) for score in scores]
    entry = found["findings"]["Edema"]
    assert entry["first"]["auroc"] == pytest.approx(values[0])
    assert entry["second"]["auroc"] == pytest.approx(values[1])
    assert entry["difference"]["auroc"] == pytest.approx(values[0] - values[1])
    differences = []
    people = int(patients.max()) + 1
    for counts in bootstrap.draws(people, replicates=bootstrap.REPLICATES):
        for count in counts:
            films = np.repeat(np.arange(81), count[patients] * known)
            a, b = (auroc_by_pairs(score[films], labels[films]) for score in scores)
            differences.append(a - b)
    wanted = np.percentile(differences, [2.5, 97.5])
    assert entry["difference"]["auroc_interval"] == pytest.approx(wanted)
    aurocs, covariance = brute_force(np.stack(scores)[:, known], labels[known])
    z = (aurocs[0] - aurocs[1]) / np.sqrt(covariance @ [1, -1] @ [1, -1])
    assert 0 < entry["delong_p"] < 1
    assert entry["delong_p"] == pytest.approx(2 * norm.sf(abs(z)))


def test_pairs_are_narrower_than_two_intervals():
    one = predictions(300, ties=False)
    near = one.logits + 0.1 * np.random.default_rng(0).normal(size=one.logits.shape)
    found = compare(one, Predictions(one.findings, one.films, near, one.labels), "test")
    low, high = found["findings"]["Edema"]["difference"]["auroc_interval"]
    assert high - low < 0.03
    alike = compare(one, one, "test")
    assert alike["macro"]["difference"]["auroc_interval"] == [0.0, 0.0]
    assert alike["findings"]["Edema"]["delong_p"] is None


@pytest.mark.parametrize("people", [1, 2])
def test_a_mean_with_a_finding_that_is_hardly_drawn_has_no_interval(people):
    """One or two patients alone are known to have or not to have Mass."""
    made = predictions(90, findings=("Edema", "Mass"), ties=False)
    labels = made.labels.copy()
    labels[:, 1] = np.nan
    labels[[0, 3 * people - 1], 1] = [0, 1]
    made = Predictions(made.findings, made.films, made.logits, labels)
    macro = summarise(made, "test")["macro"]
    assert macro["findings"] == 2 and macro["auroc"] is not None
    assert macro["auroc_interval"] is None and macro["too_few_replicates"] == ["Mass"]
    found = compare(made, made, "test")
    assert found["macro"]["difference"]["auroc"] == 0
    assert found["macro"]["difference"]["auroc_interval"] is None
    assert found["findings"]["Edema"]["difference"]["auroc_interval"] == [0, 0]


def test_what_cannot_be_compared_is_refused():
    one, other, _ = two()
    with pytest.raises(PredictionsError, match="no film and finding of split 'val'"):
        compare(one, other, "val")
    strange = Predictions(
        one.findings, one.films, one.logits, np.where(one.labels == 1, 0, one.labels)
    )
    with pytest.raises(PredictionsError, match=r"film id\d+, \w+: the two have different labels"):
        compare(one, strange, "test")
    twice = one.take(np.r_[np.arange(90), 4])
    with pytest.raises(PredictionsError, match="film id4 stands there twice"):
        compare(twice, other, "test")
