"""Window recall and the oracle's window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import retrieval


def test_union_joins_what_overlaps_or_touches():
    np.testing.assert_array_equal(retrieval.union([(30, 60), (0, 40), (60, 70), (100, 110), (5, 5)]), [(0, 70), (100, 110)])


def test_half_of_a_moment_is_enough_and_less_is_not():
    assert retrieval.window_recall([(0, 60)], [(50, 70)]) == (1.0, 1.0)
    assert retrieval.window_recall([(0, 59)], [(50, 70)]) == (0.0, 0.0)
    # two windows that show a quarter each do it together; one that is shown twice does not count twice
    assert retrieval.window_recall([(0, 55), (65, 100)], [(50, 70)]) == (1.0, 1.0)
    assert retrieval.window_recall([(0, 55), (0, 55)], [(50, 70)]) == (0.0, 0.0)


def test_any_moment_and_all_moments():
    assert retrieval.window_recall([(0, 60)], [(10, 20), (100, 110)]) == (1.0, 0.5)
    assert retrieval.window_recall([], [(10, 20)]) == (0.0, 0.0)


@given(st.floats(0, 3590), st.floats(1, 90), st.floats(30, 7200))
def test_the_oracle_window_shows_the_moment_it_is_for(start, length, duration):
    start, end = min(start, duration - 1), min(start + length, duration)
    low, high = retrieval.oracle_window((start, end), 120.0, 60.0, duration)
    assert 0 <= low < high <= duration
    assert high - low == pytest.approx(min(120.0, duration))
    # a grid of half-overlapping windows always has one that shows a moment of at most 60 s whole
    if end - start <= 60:
        assert low <= start + 1e-6 and end - 1e-6 <= high
