"""The order of data: permutations, golden ids, mixtures, and the same for every host count."""

import dataclasses

import numpy as np
import pytest

from xmae_jax.data.batch import EveryRow
from xmae_jax.data.plan import Plan, mixture_counts, permute


def test_permutations():
    for size in (1, 2, 3, 17, 64, 1000):
        for key in (0, 1, 2**63):
            index = np.arange(size)
            there = permute(index, size, np.full(size, key, np.uint64))
            assert sorted(there) == list(index), (size, key)
    a, b = (permute(np.arange(1000), 1000, np.full(1000, k, np.uint64)) for k in (1, 2))
    assert (a == b).mean() < 0.01 and (a == np.arange(1000)).mean() < 0.01
    # Neighbours part: no correlation between place and value.
    assert abs(np.corrcoef(np.arange(1000), a)[0, 1]) < 0.1


def test_every_place_is_equally_likely():
    counts = np.zeros((20, 20))
    for key in range(4000):
        counts[np.arange(20), permute(np.arange(20), 20, np.full(20, key, np.uint64))] += 1
    chi = ((counts - 200) ** 2 / 200).sum()
    assert 361 - 5 * np.sqrt(2 * 361) < chi < 361 + 5 * np.sqrt(2 * 361)


PLAN = Plan(seed=0, sizes=(10, 7), counts=(4, 2), digests=("a", "b"))


def test_golden_ids():
    assert PLAN.ids(0).tolist() == GOLDEN[0]
    assert PLAN.ids(1_000_000).tolist() == GOLDEN[1]
    assert PLAN.ids(0).dtype == np.int32


GOLDEN = (
    [[0, 2], [0, 5], [0, 9], [0, 1], [1, 4], [1, 1]],
    [[0, 6], [0, 4], [0, 7], [0, 0], [1, 4], [1, 5]],
)


def test_epochs_are_permutations_and_differ():
    plan = Plan(seed=3, sizes=(10,), counts=(4,), digests=("a",))
    order = np.concatenate([plan.ids(step)[:, 1] for step in range(10)])
    epochs = order.reshape(4, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(e) for e in epochs.tolist()}) == 4
    other = Plan(seed=4, sizes=(10,), counts=(4,), digests=("a",))
    assert any((plan.ids(s) != other.ids(s)).any() for s in range(3))
    # A batch larger than the source takes several epochs at once.
    big = Plan(seed=3, sizes=(10,), counts=(40,), digests=("a",))
    np.testing.assert_array_equal(big.ids(0)[:, 1], order)


def test_mixtures_are_fixed_blocks():
    for step in range(20):
        ids = PLAN.ids(step)
        assert ids[:, 0].tolist() == [0, 0, 0, 0, 1, 1]
    assert mixture_counts((100, 50), 6) == (4, 2)
    assert mixture_counts((1000, 1), 8) == (7, 1)
    assert sum(mixture_counts((3, 5, 11), 64)) == 64
    with pytest.raises(ValueError, match="empty source"):
        Plan(seed=0, sizes=(10, 0), counts=(4, 2), digests=("a", "b"))


def test_digest_names_order_and_data():
    again = Plan(seed=0, sizes=(10, 7), counts=(4, 2), digests=("a", "b"))
    assert PLAN.batch_digest(3) == again.batch_digest(3) != PLAN.batch_digest(4)
    other = Plan(seed=0, sizes=(10, 7), counts=(4, 2), digests=("a", "c"))
    assert other.batch_digest(3) != PLAN.batch_digest(3)


def test_a_roll_back_passes_over_batches():
    plain = Plan(3, (50,), (4,), ("a",))
    back = dataclasses.replace(plain, offsets=((20, 10), (30, 25)))
    for step, wanted in ((0, 0), (19, 19), (20, 30), (29, 39), (30, 55), (99, 124)):
        np.testing.assert_array_equal(back.ids(step), plain.ids(wanted))
        assert back.batch_digest(step) == plain.batch_digest(wanted)


def test_chosen_rows():
    chosen = (np.array([3, 8, 8, 9, 5]), np.array([6, 0]))
    plan = Plan(seed=0, sizes=(5, 2), counts=(4, 2), digests=("a+", "b+"), chosen=chosen)
    assert plan.ids(0).tolist() == GOLDEN_CHOSEN
    order = [
        np.concatenate([plan.ids(s)[plan.ids(s)[:, 0] == i, 1] for s in range(5)]) for i in (0, 1)
    ]
    for rows, size, want in zip(order, (5, 2), chosen, strict=True):
        for epoch in rows[: len(rows) // size * size].reshape(-1, size):
            assert sorted(epoch) == sorted(want)
    # Every record chosen once is no choice.
    whole = dataclasses.replace(PLAN, chosen=(np.arange(10), np.arange(7)))
    np.testing.assert_array_equal(whole.ids(5), PLAN.ids(5))
    with pytest.raises(ValueError, match="not those of the rows"):
        dataclasses.replace(PLAN, chosen=chosen)


GOLDEN_CHOSEN = [[0, 8], [0, 3], [0, 5], [0, 8], [1, 6], [1, 0]]


def test_a_source_of_which_nothing_is_chosen_has_no_rows():
    assert mixture_counts((10, 0, 30), 8) == (2, 0, 6)
    none = np.array([], np.int64)
    plan = Plan(
        0, (2, 0, 3), (3, 0, 1), ("a", "b", "c"), chosen=(np.array([4, 1]), none, np.arange(3))
    )
    assert plan.batch_size == 4 and plan.ids(7)[:, 0].tolist() == [0, 0, 0, 2]
    for counts in ((3, 1, 1), (3, 0, 0)):
        with pytest.raises(ValueError, match="empty source"):
            dataclasses.replace(plan, counts=counts)


def test_every_row_of_what_is_chosen():
    chosen = (np.array([7, 2]), np.array([], np.int64), np.array([0, 5, 6]))
    every = EveryRow((2, 0, 3), 4, 100, chosen)
    seen = np.concatenate([every(step) for step in range(every.steps)])
    want = [[0, 7], [0, 2], [2, 0], [2, 5], [2, 6], [-1, -1], [-1, -1], [-1, -1]]
    assert seen.tolist() == want
    assert EveryRow((2, 0, 3), 2, 2, chosen)(0).tolist() == [[0, 7], [2, 0]]
