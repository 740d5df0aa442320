"""Subsets of patients and repeats of rare findings: nested, deterministic, golden."""

import dataclasses

import numpy as np
import pytest

from xmae_jax.data.findings import FINDINGS
from xmae_jax.data.index import Entry
from xmae_jax.data.subset import Subset, few_shots, repeats, rows_digest, share_of_patients

PATIENTS = [f"p{i // 2:03d}" for i in range(400)]  # two films each
LABELS = np.random.default_rng(0).choice(
    np.array([0, 1, -1, np.nan], np.float32), size=(400, 3), p=[0.6, 0.1, 0.1, 0.2]
)


def of(chosen):
    return {PATIENTS[i] for i in np.flatnonzero(chosen)}


def test_shares_are_of_patients_and_nested():
    shares = {s: share_of_patients(PATIENTS, s, seed=0) for s in (0.001, 0.01, 0.1, 0.5, 1.0)}
    assert [len(of(chosen)) for chosen in shares.values()] == [1, 2, 20, 100, 200]
    for chosen in shares.values():
        assert (chosen.reshape(200, 2)[:, 0] == chosen.reshape(200, 2)[:, 1]).all()
    small = list(shares.values())
    assert all(of(a) <= of(b) for a, b in zip(small, small[1:], strict=False))
    assert of(share_of_patients(PATIENTS, 0.1, seed=1)) != of(shares[0.1])
    # The order of the index does not matter, only the names.
    back = share_of_patients(PATIENTS[::-1], 0.1, seed=0)[::-1]
    np.testing.assert_array_equal(back, shares[0.1])


def test_golden_patients():
    assert sorted(of(share_of_patients(PATIENTS, 0.02, seed=0))) == GOLDEN


GOLDEN = ["p055", "p074", "p139", "p152"]


@pytest.mark.parametrize("seed", [0, 1])
def test_shots_are_positive_and_negative_patients(seed):
    before = set()
    for shots in (1, 4, 16):
        chosen = few_shots(PATIENTS, LABELS, shots, seed=seed)
        assert before <= of(chosen)
        before = of(chosen)
        for c in range(3):
            by_patient = LABELS[:, c].reshape(200, 2)
            positive = (by_patient == 1).any(1)
            negative = (by_patient == 0).any(1) & ~(np.abs(by_patient) == 1).any(1)
            taken = chosen.reshape(200, 2).all(1)
            for group in (positive, negative):
                assert (taken & group).sum() >= min(shots, group.sum())
        assert len(before) <= 6 * shots
    everyone = few_shots(PATIENTS, LABELS, 1000, seed=seed)
    assert everyone.sum() > 390  # only those of unknown and uncertain findings are left


def test_a_finding_that_nobody_has_asks_for_nothing():
    assert not few_shots(["a", "b"], np.full((2, 1), np.nan, np.float32), 3, seed=0).any()
    assert repeats(np.full((2, 1), np.nan, np.float32), 0.5).tolist() == [1, 1]


def test_repeats_are_those_of_lvis():
    labels = np.zeros((1000, 3), np.float32)
    labels[:500, 0] = 1  # at the threshold of a half
    labels[::100, 1] = 1  # 1 %: sqrt(0.5 / 0.01) = 7.07 showings of each
    labels[5::50, 2] = 1  # 2 %: 5
    counts = repeats(labels, 0.5)
    assert set(counts[labels[:, 1] == 1]) == {7}
    rounded = repeats(labels, 0.4)[labels[:, 1] == 1]  # of 6.32
    assert rounded.tolist() == [6, 6, 6, 7, 6, 6, 6, 7, 6, 6]
    assert set(counts[labels[:, 2] == 1]) == {5}
    assert set(counts[(labels[:, 1:] == 0).all(1)]) == {1}
    assert repeats(labels, 0.005).tolist() == [1] * 1000  # nothing is so rare
    # The rarest finding of a film counts, and neither uncertain nor unknown ones do.
    labels[100, 2] = 1
    labels[1, 1], labels[2, 1] = -1, np.nan
    counts = repeats(labels, 0.5)
    assert counts[100] >= 7 and counts[1] == counts[2] == 1


def test_digests_name_the_rows():
    rows = np.array([0, 2, 2])
    assert rows_digest("a", rows) == rows_digest("a", rows.astype(np.int32))
    assert len({rows_digest(d, r) for d, r in (("a", rows), ("b", rows), ("a", rows[:2]))}) == 3


def entry(patient, labels, source="a"):
    blank = dict.fromkeys(Entry._fields, "")
    whole = ["."] * len(FINDINGS)
    for name, mark in labels.items():
        whole[FINDINGS.index(name)] = mark
    return Entry(**blank | dict(patient=patient, source=source, labels="".join(whole)))


SUBSET = Subset(
    seed=0,
    label_fraction=1.0,
    shots=None,
    leave_out_source=None,
    balance=None,
    findings=("Edema", "Mass"),
)
ENTRIES = [
    [entry(f"p{i // 2}", {"Edema": "1" if i == 3 else "0"}, "ab"[i % 4 == 0]) for i in range(8)],
    [entry(f"q{i}", {"Edema": "0", "Mass": "01u."[i % 4]}, "c") for i in range(8)],
]


def rows(part="train", **changes):
    return [r.tolist() for r in dataclasses.replace(SUBSET, **changes).rows(ENTRIES, part)]


def test_rows_of_all_sources():
    everything = [[*range(8)], [*range(8)]]
    assert rows() == rows("val", label_fraction=0.1, shots=1, balance=0.5) == everything
    # Half of the 12 patients, with both films each, wherever they lie.
    first, second = rows(label_fraction=0.5)
    assert len(second) + len(first) // 2 == 6 and {i // 2 * 2 for i in first} < set(first)
    # One film in 16 has Edema, two Mass: the least share asks for 2.8 and 2 showings.
    first, second = rows(balance=0.5)
    assert first == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert second == [0, 1, 1, 2, 3, 4, 5, 5, 6, 7]
    # A source of several may be left out whole.
    assert rows(leave_out_source="c") == rows("val", leave_out_source="c") == [[*range(8)], []]
    assert rows("test", leave_out_source="c") == [[], [*range(8)]]
    assert rows("test", leave_out_source="a") == [[1, 2, 3, 5, 6, 7], []]
    with pytest.raises(
        ValueError,
        match="leave_out_source: 'd' is none of them; sources of the train films: a, b, c",
    ):
        rows(leave_out_source="d")
    with pytest.raises(ValueError, match="shots: no training film"):
        rows(shots=1, findings=("Hernia",))


def test_what_is_touched():
    assert not any(SUBSET.touches(part) for part in ("train", "val", "test"))
    for change in (dict(label_fraction=0.1), dict(shots=2), dict(balance=0.1)):
        subset = dataclasses.replace(SUBSET, **change)
        assert subset.touches("train") and not subset.touches("val")
    left_out = dataclasses.replace(SUBSET, leave_out_source="a")
    assert all(left_out.touches(part) for part in ("train", "val", "test"))


def test_what_is_told():
    subset = dataclasses.replace(SUBSET, balance=0.5, leave_out_source="b")
    text = subset.describe(ENTRIES, subset.rows(ENTRIES, "train"), unit="films")
    first, _, edema, mass = text.splitlines()
    assert first == "training on 14 of 16 films, 12 of 12 patients; 17 rows an epoch"
    assert edema.split() == ["Edema", "1", "13", "2"] and mass.split() == ["Mass", "2", "2", "4"]
