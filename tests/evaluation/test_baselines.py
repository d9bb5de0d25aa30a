"""The span rule on curves drawn by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import baselines
from revision_jax.evaluation.baselines import SpanRule

PLAIN = SpanRule(smooth_s=1.0, relative=0.5)


def bumps(count, *places):
    curve = np.full(count, 0.1)
    for first, last, height in places:
        curve[first : last + 1] = height
    return curve


def test_spans_are_the_plateaus_highest_first():
    found = baselines.spans(bumps(100, (10, 19, 0.6), (50, 54, 0.9)), 1.0, PLAIN, 2)
    # frames 50..54 at one a second stand for 49.5 .. 54.5 s
    assert found == [(49.5, 54.5, pytest.approx(0.9)), (9.5, 19.5, pytest.approx(0.6))]


def test_a_lower_threshold_takes_more_of_a_slope():
    slope = bumps(60, (20, 40, 0.3), (28, 32, 0.9))
    (strict,), (loose,) = (baselines.spans(slope, 1.0, SpanRule(1.0, relative), 1) for relative in (0.5, 0.1))
    assert strict[:2] == (27.5, 32.5) and loose[:2] == (19.5, 40.5)


def test_smoothing_joins_what_flickers():
    flicker = bumps(60, *[(frame, frame, 0.9) for frame in range(20, 30, 2)])
    assert len(baselines.spans(flicker, 1.0, PLAIN, 5)) == 5
    first = baselines.spans(flicker, 1.0, SpanRule(5.0, 0.5), 5)[0]
    assert first[1] - first[0] >= 8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.sampled_from(baselines.SMOOTHING_S), st.sampled_from(baselines.RELATIVE), st.integers(1, 6))
def test_spans_are_inside_apart_and_ranked(curve, smooth_s, relative, top_k):
    found = baselines.spans(np.array(curve), 2.0, SpanRule(smooth_s, relative), top_k)
    assert 1 <= len(found) <= top_k
    for start, end, height in found:
        assert 0 <= start < end <= len(curve) / 2.0 and 0 <= height <= 1
    assert [height for *_, height in found] == sorted((height for *_, height in found), reverse=True)
    ordered = sorted(found)
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(ordered))


def test_smoothing_keeps_a_constant_and_the_length():
    for count in range(1, 12):
        np.testing.assert_allclose(baselines.smooth(np.full(count, 0.3), 7), np.full(count, 0.3))
