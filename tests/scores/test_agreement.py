"""Agreement on findings and sides, against scikit-learn and by hand."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import f1_score

from xmae_jax.scores.agreement import NAMES, POLICIES, SETS, agreement, labelled, side_agreement

EVERYONE = np.arange(300)


def drawn(seed: int, *, count: int = 300) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.choice([1.0, 0.0, -1.0, np.nan], (count, len(NAMES)), p=[0.2, 0.3, 0.1, 0.4])


@pytest.mark.parametrize("policy", POLICIES)
def test_f1_is_scikit_learns(policy):
    said, truth = drawn(0), drawn(1)
    truth[:, 2], said[:, 2] = 0, np.nan  # a finding that nobody has
    found = agreement(
        said, truth, known=np.ones(said.shape, bool), patients=EVERYONE, policy=policy
    )
    positive = [1, -1] if policy == "uncertain_present" else [1]
    called, there = np.isin(said, positive), np.isin(truth, positive)
    if policy == "uncertain_left_out":
        unsure = (said == -1) | (truth == -1)
        for c, name in enumerate(NAMES):
            kept = ~unsure[:, c]
            want = f1_score(there[kept, c], called[kept, c], zero_division=np.nan)
            assert found["findings"][name]["f1"] == (
                None if np.isnan(want) else pytest.approx(want)
            )
        return
    for name, members in SETS.items():
        places = [NAMES.index(one) for one in members]
        some = [c for c in places if c != 2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            micro = f1_score(there[:, places], called[:, places], average="micro")
            macro = f1_score(there[:, some], called[:, some], average="macro")
        assert found[name]["micro"]["f1"] == pytest.approx(micro)
        assert found[name]["macro"]["f1"] == pytest.approx(macro)
        assert found[name]["macro"]["left_out"] == [NAMES[2]]
        low, high = found[name]["micro"]["f1_interval"]
        assert low < micro < high
    assert found["findings"][NAMES[2]]["f1"] is None


def test_what_is_not_known_is_not_scored():
    said, truth = np.ones((2, len(NAMES))), np.ones((2, len(NAMES)))
    truth[1] = np.nan
    found = agreement(
        said, truth, known=~np.isnan(truth), patients=np.arange(2), policy="uncertain_absent"
    )
    assert found["chexpert_14"]["micro"]["precision"] == 1.0
    assert (
        found["findings"]["Edema"] | {"tp": 1, "fp": 0, "fn": 0, "tn": 0}
        == (found["findings"]["Edema"])
    )


def test_intervals_draw_patients():
    said, truth = drawn(0), drawn(1)
    scored = {
        "known": np.ones(said.shape, bool),
        "policy": "uncertain_absent",
    }
    alone = agreement(said, truth, patients=EVERYONE, **scored)
    both = agreement(
        np.repeat(said, 4, axis=0),
        np.repeat(truth, 4, axis=0),
        patients=np.repeat(EVERYONE, 4),
        **{**scored, "known": np.ones((1200, len(NAMES)), bool)},
    )
    # Four like studies of each patient tell no more than one.
    first, second = (of["chexpert_14"]["micro"] for of in (alone, both))
    assert first["f1"] == pytest.approx(second["f1"])
    assert first["f1_interval"] == pytest.approx(second["f1_interval"])
    one = agreement(said, truth, patients=np.zeros(300, int), **scored)
    assert one["chexpert_14"]["micro"]["f1_interval"] is None


def test_always_normal():
    truth = labelled(["The lungs are clear.", "The lungs are clear.", "Effusion."])
    nothing = np.zeros(truth.shape)
    found = agreement(
        nothing,
        truth,
        known=np.ones(truth.shape, bool),
        patients=np.arange(3),
        policy="uncertain_absent",
    )
    assert found["chexpert_14"]["always_normal"] == pytest.approx(2 / 3)  # 2 of 3 and 2 of 3
    assert found["chexpert_5"]["always_normal"] == 0


def test_labels_of_texts():
    rows = labelled(["Small left effusion. No pneumothorax.", ""])
    place = {name: rows[0, NAMES.index(name)] for name in ("Pleural Effusion", "Pneumothorax")}
    assert place == {"Pleural Effusion": 1.0, "Pneumothorax": 0.0}
    assert np.isnan(rows[1]).all()
    assert labelled([]).shape == (0, len(NAMES))


def test_sides():
    references = ["Left effusion.", "Right nodule.", "Bilateral effusions.", "Effusion."]
    generated = ["Left effusion.", "Left nodule.", "No effusion.", "Left effusion."]
    found = side_agreement(generated, references, patients=np.arange(4))
    assert (found["sided"], found["found"], found["same"]) == (3, 2, 1)
    assert (found["right"], found["right_of_found"]) == (pytest.approx(1 / 3), 0.5)
    assert found["findings"] == {
        "Lung Lesion": {"sided": 1, "found": 1, "right": 0},
        "Pleural Effusion": {"sided": 2, "found": 1, "right": 1},
    }
    none = side_agreement(["Effusion."], ["Effusion."], patients=np.arange(1))
    assert none["right"] is None and none["right_of_found"] is None
