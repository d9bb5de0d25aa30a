"""Times as people read them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.ui import clock as c


def test_clock():
    assert c.clock(0.0) == "00:00:00"
    assert c.clock(3661.26, 1) == "01:01:01.3"
    assert c.clock(59.96, 1) == "00:01:00.0"  # rounds before it splits
    assert c.clock(9 * 3600 + 5.0) == "09:00:05"
    assert c.clock(-1.0) == "00:00:00"


@pytest.mark.parametrize(("seconds", "text"), [(7.5, "7.5 s"), (12.0, "12 s"), (80.0, "1 min 20 s"), (3600.0, "1 h"), (7500.0, "2 h 5 min"), (59.99, "60 s")])
def test_length(seconds, text):
    assert c.length(seconds) == text


@given(st.floats(0.5, 4e5), st.integers(2, 20))
def test_ticks_are_inside_even_and_few(duration, most):
    ticks = c.ticks(0.0, duration, most)
    assert len(ticks) <= most and ticks[0] == 0 and ticks[-1] <= duration + 1e-6
    assert len({round(b - a, 6) for a, b in itertools.pairwise(ticks)}) <= 1


def test_an_hour_is_ticked_every_ten_minutes():
    assert c.ticks(0.0, 3600.0, 7) == [600.0 * i for i in range(7)]
