"""Rows planned from lengths: nothing lost, nothing twice, nothing too long; and pictures that never share a place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, ConversationConfig, RowConfig
from revision_jax.data.lengths import Lengths, joined, measured
from revision_jax.data.mixture import epoch_order
from revision_jax.data.packing import filled, pack, place, placed, plan, shapes_of, slots_of

ROWS = (RowConfig(64, 32, 40, ((3, 16),)), RowConfig(128, 96, 64, ((2, 16), (1, 64))), RowConfig(100, 0, 100, ()))


def some_lengths(seed: int, count: int = 40) -> Lengths:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        runs = [(int(rng.integers(1, 5)), int(rng.integers(1, 20))) for _ in range(rng.integers(0, 3))]
        visual = sum(number * size for number, size in runs)
        labels = int(rng.integers(1, 30))
        rows.append((visual + labels + int(rng.integers(2, 40)), visual, labels, runs) if rng.random() > 0.1 else (0, 0, 0, []))
    return measured(rows)


def check(made, lengths, rows, batch):
    """A plan keeps its promises; returns how often each conversation was placed."""
    assert len(made.first) == made.steps * batch + 1
    for step, number in enumerate(made.shapes):
        shape = rows[number]
        for row in range(step * batch, (step + 1) * batch):
            own = made.row(row)
            assert lengths.tokens[own].sum() <= shape.length and lengths.visual[own].sum() <= shape.visual and lengths.labels[own].sum() <= shape.labels
            taken = [np.zeros(size, int) for size in slots_of(shape)]
            for index, stretches in zip(own, placed([lengths.runs(i) for i in own], shape), strict=True):
                runs = lengths.runs(index)
                assert [sum(s.count for s in stretches if s.run == run) for run in range(len(runs))] == [count for count, _ in runs]
                for run, slot, offset, count in stretches:
                    assert offset + count * runs[run][1] <= len(taken[slot])
                    taken[slot][offset : offset + count * runs[run][1]] += 1
            assert all(slot.max(initial=0) <= 1 for slot in taken)
    return np.bincount(made.samples, minlength=len(lengths))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4), window=st.integers(1, 50))
def test_an_epoch_holds_every_conversation_that_fits_once(seed, batch, window):
    lengths = some_lengths(seed)
    shapes = shapes_of(lengths, ROWS)
    usable = np.flatnonzero(shapes >= 0)
    assert not (shapes[lengths.tokens == 0] >= 0).any()
    order = np.random.default_rng(seed).permutation(usable)
    made = plan(order, shapes, lengths, ROWS, batch, window, np.random.default_rng(seed))
    seen = check(made, lengths, ROWS, batch)
    assert (seen[usable] == 1).all() and seen.sum() == len(usable)
    again = plan(order, shapes, lengths, ROWS, batch, window, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


def test_a_conversation_goes_into_the_first_shape_that_holds_it():
    rows = [(60, 10, 10, [(1, 10)]), (60, 33, 10, [(3, 11)]), (60, 10, 41, []), (129, 0, 5, []), (60, 20, 10, [(1, 40)]), (90, 0, 90, [])]
    rows.append((60, 30, 5, [(3, 10)]))
    assert shapes_of(measured(rows), ROWS).tolist() == [0, 1, 1, -1, 1, 2, 0]


def test_equal_pictures_share_slots_and_large_ones_find_theirs():
    sizes = [10, 10, 25]
    free = list(sizes)
    found = place([(4, 5), (1, 20)], free, sizes)
    # The largest first; then the fullest slot with room.
    assert [tuple(stretch) for stretch in found] == [(1, 2, 0, 1), (0, 2, 20, 1), (0, 0, 0, 2), (0, 1, 0, 1)]
    assert free == [0, 5, 0]
    assert place([(2, 5)], free, sizes) is None and free == [0, 5, 0]


def test_best_fit_fills_rows():
    rng = np.random.default_rng(0)
    lengths = measured([(int(tokens), 0, 1, []) for tokens in rng.integers(100, 8000, 1024)])
    shape = RowConfig(16384, 0, 1024, ())
    rows = pack(np.arange(1024), lengths, shape)
    assert lengths.tokens.sum() / (len(rows) * shape.length) > 0.98
    order = np.arange(1024)
    made = plan(order, np.zeros(1024, np.int8), lengths, (shape,), 1, 1024, rng)
    assert filled(made, lengths, (shape,)).tokens == pytest.approx(lengths.tokens.sum() / (len(rows) * shape.length))


def test_parts_of_a_dataset_are_joined():
    one, two = some_lengths(1, 7), some_lengths(2, 9)
    both = joined([one, two])
    assert len(both) == 16 and [both.runs(i) for i in range(16)] == [one.runs(i) for i in range(7)] + [two.runs(i) for i in range(9)]


def test_a_mixture_shows_each_dataset_as_often_as_its_weight_says():
    members = [np.arange(100), np.arange(100, 110), np.arange(110, 130)]
    orders = [epoch_order(members, (0.25, 2.5, 1.0), (3, 5), epoch) for epoch in range(3)]
    for order in orders:
        seen = np.bincount(order, minlength=130)
        assert seen[:100].sum() == 25 and seen[:100].max() == 1
        assert seen[100:110].sum() == 25 and set(seen[100:110]) == {2, 3}
        assert (seen[110:] == 1).all()
    assert not np.array_equal(orders[0], orders[1]) and set(orders[0][orders[0] < 100]) != set(orders[1][orders[1] < 100])
    np.testing.assert_array_equal(orders[1], epoch_order(members, (0.25, 2.5, 1.0), (3, 5), 1))
    assert len(epoch_order([np.arange(1)], (0.1,), (0,), 0)) == 1  # never nothing


@pytest.mark.parametrize(
    ("row", "says"),
    [({"length": 0}, "length: must be above 0"), ({"visual": 20000}, "visual: must lie in 0 to length"), ({"slots": ((0, 5),)}, "must be .how many, patches."),
     ({"visual": 0}, "one needs the other")],
)
def test_shapes_that_cannot_be(row, says):
    with pytest.raises(ConfigError, match=says):
        RowConfig(**row)
    with pytest.raises(ConfigError, match="weight of a must be above 0"):
        ConversationConfig(mixture=(("a", 0.0),))
