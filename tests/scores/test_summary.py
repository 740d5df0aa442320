"""All scores of a split: each against its own function, every count, every mean."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from tests.scores.made import auroc_by_pairs, predictions
from xmae_jax.scores import bootstrap, calibration, decisions
from xmae_jax.scores.predictions import Predictions
from xmae_jax.scores.summary import summarise

TRAIN = np.array([2000, 150, 3])


def both_splits(films=150, **kwargs):
    val, test = (
        predictions(films, seed=i, split=s, **kwargs) for i, s in enumerate(("val", "test"))
    )
    labels, logits = (
        np.concatenate([getattr(x, n) for x in (val, test)]) for n in ("labels", "logits")
    )
    return Predictions(val.findings, val.films + test.films, logits, labels), val, test


@pytest.fixture(scope="module")
def made():
    both, val, test = both_splits()
    both.labels[150:, 2][both.labels[150:, 2] == 1] = 0  # nobody has it in the test split
    test.labels[:] = both.labels[150:]
    return summarise(both, "test", train_positive=TRAIN), both, val, test


def column(predictions, c):
    known = predictions.known[:, c]
    return predictions.logits[known, c], predictions.labels[known, c] == 1


def test_counts(made):
    metrics, _, _, test = made
    assert (metrics["films"], metrics["patients"], metrics["studies"]) == (150, 50, 100)
    for c, entry in enumerate(metrics["findings"].values()):
        counts = [entry[f"n_{n}"] for n in ("positive", "negative", "uncertain", "unknown")]
        labels = test.labels[:, c]
        assert counts == [(labels == 1).sum(), (labels == 0).sum(), (labels == -1).sum(),
                          np.isnan(labels).sum()]  # fmt: skip
    assert metrics["chosen_on"] == {"split": "val", "films": 150}
    json.dumps(metrics, allow_nan=False)


def test_what_is_one_sided_is_undefined_and_no_part_of_the_mean(made):
    metrics, *_ = made
    hernia = metrics["findings"]["Hernia"]
    assert hernia["auroc"] is None and hernia["average_precision"] is None
    assert hernia["auroc_interval"] is None and hernia["delong"] is None
    assert hernia["threshold"]["sensitivity"] is None
    macro, others = metrics["macro"], [metrics["findings"][n] for n in ("Edema", "Mass")]
    assert (macro["findings"], macro["of"], macro["left_out"]) == (2, 3, ["Hernia"])
    for name in ("auroc", "average_precision"):
        assert macro[name] == pytest.approx(np.mean([entry[name] for entry in others]))
        assert metrics[f"macro_{name}"] == macro[name]
    assert macro["threshold"]["sensitivity_findings"] == 2
    assert macro["calibration"]["brier_findings"] == 3


def test_the_mean_of_a_replicate(made):
    metrics, _, _, test = made
    patients = test.patients()
    values = []
    for counts in bootstrap.draws(50, replicates=bootstrap.REPLICATES):
        for count in counts:
            films = np.repeat(np.arange(150), count[patients])
            values.append(np.mean([auroc_by_pairs(*column(test.take(films), c)) for c in (0, 1)]))
    assert metrics["macro"]["auroc_interval"] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_thresholds_and_temperatures_come_from_validation(made):
    metrics, _, val, test = made
    for c, name in enumerate(("Edema", "Mass")):
        entry = metrics["findings"][name]
        logits, labels = column(test, c)
        threshold = decisions.best_threshold(*column(val, c))
        assert entry["threshold"]["logit"] == threshold
        called = logits >= threshold
        assert entry["threshold"]["f1"] == pytest.approx(f1_score(labels, called))
        assert entry["threshold"]["sensitivity"] == pytest.approx(recall_score(labels, called))
        low, high = entry["threshold"]["sensitivity_interval"]
        assert low < entry["threshold"]["sensitivity"] < high
        warmth = calibration.temperature(*column(val, c))
        assert entry["calibration"]["temperature"] == warmth
        assert entry["calibration"]["scaled"] == calibration.quality(logits / warmth, labels)


def test_without_validation_films_nothing_is_chosen():
    metrics = summarise(predictions(60), "test")
    edema = metrics["findings"]["Edema"]
    assert edema["threshold"] is None and edema["calibration"]["temperature"] is None
    assert edema["calibration"]["scaled"] is None and edema["calibration"]["brier"] > 0
    assert metrics["frequency_groups"] is None and "frequency" not in edema


def test_frequency_groups(made):
    found = made[0]["frequency_groups"]
    assert "1,000" in found["rule"] and found["head"]["names"] == ["Edema"]
    assert found["medium"]["auroc"] == made[0]["findings"]["Mass"]["auroc"]
    assert (found["tail"]["findings"], found["tail"]["of"], found["tail"]["auroc"]) == (0, 1, None)


def test_subgroups_and_their_gap(made):
    metrics, _, _, test = made
    sex = metrics["subgroups"]["sex"]
    for name, letter in (("F", "F"), ("M", "M"), ("unknown", "")):
        rows = np.array([film.sex == letter for film in test.films])
        assert sex["groups"][name]["films"] == rows.sum()
        logits, labels = column(test.take(rows), 0)
        entry = sex["groups"][name]["findings"]["Edema"]
        assert entry["auroc"] == pytest.approx(roc_auc_score(labels, logits))
        assert (entry["n_positive"], entry["n_negative"]) == (labels.sum(), (~labels).sum())
    aurocs = {name: sex["groups"][name]["findings"]["Edema"]["auroc"] for name in "FM"}
    gap = sex["gaps"]["Edema"]
    assert gap["highest"] == max(aurocs, key=aurocs.get)
    assert gap["auroc"] == pytest.approx(abs(aurocs["F"] - aurocs["M"]))
    low, high = gap["auroc_interval"]
    assert low < gap["auroc"] < high
    # The mean is over what all compared groups have enough of: Mass is too rare in one.
    assert sex["common_findings"] == ["Edema"]
    assert sex["groups"]["M"]["mean"]["auroc"] == aurocs["M"]
    assert sex["groups"]["unknown"]["mean"] is None and sex["gaps"]["mean"] == gap


def test_small_groups_have_no_interval_and_no_part_in_gaps():
    metrics = summarise(predictions(60), "test")
    age = metrics["subgroups"]["age"]
    edema = [one["findings"]["Edema"] for one in age["groups"].values()]
    small = [one for one in edema if min(one["n_positive"], one["n_negative"]) < 10]
    assert small and all(one["auroc_interval"] is None for one in small)
    assert age["gaps"] == {} and age["common_findings"] == []


def test_studies_are_scored_too(made):
    metrics, _, _, test = made
    studies = metrics["by_study"]
    entry = studies["each"]["Edema"]
    assert entry["n_positive"] + entry["n_negative"] < 100
    logits, present, absent, views = {}, {}, {}, {}
    for film, score, label in zip(test.films, test.logits[:, 0], test.labels[:, 0], strict=True):
        key = film.patient, film.study
        logits.setdefault(key, []).append(score)
        present[key] = present.get(key, False) or label == 1
        absent.setdefault(key, []).append(label)
        views.setdefault(key, set()).add(film.view == "L")
    assert studies["two_views"] == [len(kinds) for kinds in views.values()].count(2) > 0
    used = [k for k in logits if present[k] or (0 in absent[k] and -1 not in absent[k])]
    labels = [present[k] for k in used]
    scores = [np.mean(logits[k]) for k in used]
    assert entry["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert entry["average_precision"] == pytest.approx(average_precision_score(labels, scores))


def test_one_film_a_study_has_no_scores_by_study():
    made = predictions(30)
    films = tuple(film._replace(study=film.id) for film in made.films)
    assert (
        summarise(Predictions(made.findings, films, made.logits, made.labels), "test")["by_study"]
        is None
    )


def test_no_film_and_one_film():
    for films in (0, 1):
        metrics = summarise(predictions(films), "test", train_positive=TRAIN)
        assert metrics["films"] == films and metrics["macro"]["auroc"] is None
        assert metrics["macro"]["left_out"] == ["Edema", "Mass", "Hernia"]
        json.dumps(metrics, allow_nan=False)


def test_one_patient_has_no_intervals():
    made = predictions(40)
    films = tuple(film._replace(patient="p") for film in made.films)
    val = tuple(film._replace(split="val") for film in films)
    twice = Predictions(
        made.findings, films + val, *(np.tile(x, (2, 1)) for x in (made.logits, made.labels))
    )
    metrics = summarise(twice, "test")
    edema = metrics["findings"]["Edema"]
    assert edema["auroc"] is not None and edema["auroc_interval"] is None
    assert edema["threshold"]["f1"] > 0 and edema["threshold"]["f1_interval"] is None
    assert metrics["macro"]["auroc_interval"] is None
