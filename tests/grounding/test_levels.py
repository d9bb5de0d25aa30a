"""Windows cover the film and stay inside it; groups and runs lose nothing; numbers and seconds agree with the training labels."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, LevelConfig
from revision_jax.data.windows import frame_span, instants, slot_frames, slot_times
from revision_jax.grounding import levels
from tests.grounding.conftest import small_config

seconds = st.floats(0.5, 2000, allow_nan=False).map(lambda x: round(x, 3))


@given(start=st.floats(0, 500).map(lambda x: round(x, 3)), length=seconds, span=st.sampled_from([8.0, 20.0, 60.0, 125.0]), share=st.floats(0.2, 1.0))
@settings(max_examples=60, deadline=None)
def test_windows_cover_the_stretch_and_stay_inside(start, length, span, share):
    end = start + length
    found = levels.windows(start, end, span, span * share)
    assert found[0].start_s == start and abs(found[-1].end_s - end) < 1e-6
    for window in found:
        assert start - 1e-9 <= window.start_s < window.end_s <= end + 1e-9
        assert window.end_s - window.start_s == pytest.approx(min(span, length))
    for before, after in pairwise(found):
        assert before.start_s < after.start_s <= before.end_s + 1e-6  # in order, no gap
    if length > span:
        assert len(found) <= math.ceil((length - span) / (span * share) + 1e-6) + 1


def test_the_last_window_is_moved_back():
    assert [(w.start_s, w.end_s) for w in levels.windows(0, 70, 40, 20)] == [(0, 40), (20, 60), (30, 70)]
    assert [(w.start_s, w.end_s) for w in levels.windows(0, 80, 40, 20)] == [(0, 40), (20, 60), (40, 80)]
    assert levels.windows(5, 25, 40, 20) == [levels.Window(5, 25, 40)]
    with pytest.raises(ValueError, match="length"):
        levels.windows(5, 5, 40, 20)


@given(count=st.integers(0, 500), size=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_groups_hold_every_window_and_are_full(count, size):
    found = levels.groups(count, size)
    assert {i for group in found for i in group} == set(range(count))
    assert all(len(group) == min(size, count) for group in found)
    assert len(found) == math.ceil(count / size)


@given(count=st.integers(1, 400), length=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_runs_part_the_windows(count, length):
    found = levels.runs([levels.Window(i, i + 2, 2) for i in range(count)], length)
    assert [i for run in found for i in run] == list(range(count))
    assert all(len(run) == length for run in found[:-1])


@given(start=st.floats(0, 100), first=st.integers(0, 119), length=st.integers(1, 60), slots=st.sampled_from([40, 120, 250]))
@settings(max_examples=60, deadline=None)
def test_numbers_and_seconds_invert_each_other(start, first, length, slots):
    window = levels.Window(start, start + 120.0, 120.0)
    tick = 120.0 / slots
    moment = (start + first % slots * tick, start + min(first % slots + length, slots) * tick)
    found = frame_span(slot_times(start, 120.0, slots), np.ones(slots, bool), moment)
    low, high = levels.slot_seconds(window, slots, *found)
    assert abs(low - moment[0]) <= 0.5 * tick + 1e-6 and abs(high - moment[1]) <= 0.5 * tick + 1e-6


@given(i=st.integers(0, 50), n=st.integers(0, 249), m=st.integers(0, 249))
def test_numbers_that_are_instants_are_read_as_the_released_model_means_them(i, n, m):
    """t = 62.5 i + n / 2 at MAD's dense level; an instant alone is widened by one to both sides, and "249 to 249" is nothing."""
    first, last = sorted((n, m))
    low, high = levels.slot_seconds(levels.Window(62.5 * i, 62.5 * i + 125, 125.0), 250, first, last, "instant")
    if first < last:
        assert (low, high) == pytest.approx((62.5 * i + first / 2, 62.5 * i + last / 2))
    elif first < 249:
        assert (low, high) == pytest.approx((max(62.5 * i + (first - 1) / 2, 0.0), 62.5 * i + (last + 1) / 2))
    else:
        assert low == high


@given(start=st.integers(0, 100), first=st.integers(0, 99), length=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_numbers_of_linspace_slots_are_read_at_the_frames_they_show(start, first, length):
    """100 slots over 120 s, both ends included: a slot every 120 / 99 s, cut to whole seconds."""
    index = slot_frames(float(start), 120.0, 100, 1.0, 1000, "linspace")
    moment = (float(start + first), float(min(start + first + length, start + 120)))
    found = frame_span(index.astype(float), np.ones(100, bool), moment)
    low, high = levels.slot_seconds(levels.Window(start, start + 120.0, 120.0), 100, *found, "inclusive", "linspace")
    assert abs(low - moment[0]) <= 1.5 * 120 / 99 and abs(high - moment[1]) <= 1.5 * 120 / 99
    assert levels.slot_seconds(levels.Window(0.0, 125.0, 125.0), 250, 10, 99, "instant", "linspace") == (5.0, 49.5)  # the number alone counts


def test_frames_whose_end_is_exclusive_stand_for_the_time_up_to_the_next_one():
    assert levels.slot_seconds(levels.Window(100.0, 220.0, 120.0), 120, 12, 31, "exclusive") == (112.0, 132.0)
    assert levels.slot_seconds(levels.Window(100.0, 130.5, 120.0), 120, 12, 31, "exclusive") == (112.0, 130.5)  # cut at the window's end


@given(start=st.floats(0, 120), length=st.floats(1.0, 60.0))
def test_instants_are_labels_within_half_a_slot(start, length):
    mask, moment = np.ones(250, bool), (start + 50.0, min(start + length, 124.0) + 50.0)
    if moment[1] - moment[0] < 1.0:
        return
    found = levels.slot_seconds(levels.Window(50.0, 175.0, 125.0), 250, *instants(50.0, 125.0, mask, moment), "instant")
    assert found == pytest.approx(moment, abs=0.25 + 1e-6)


def test_numbers_of_windows_are_their_times():
    windows = levels.windows(0, 70, 40, 20)
    assert levels.windows_seconds(windows, 0, 1) == (0, 60)
    assert levels.windows_seconds(windows, 1, 2) == (20, 70)
    assert levels.spanned(windows) == levels.Window(0, 70, 70)


DENSE = LevelConfig(name="dense", kind="dense", span_s=120.0, stride_s=60.0, tokens=120)


@given(
    duration=st.floats(60, 2000), regions=st.lists(st.tuples(st.floats(0, 1), st.floats(10, 700)), min_size=1, max_size=5), offset=st.sampled_from([0.0, 17.0]),
)
@settings(max_examples=60, deadline=None)
def test_frame_windows_show_the_regions(duration, regions, offset):
    end = offset + duration
    spans = [(offset + at * duration, min(offset + at * duration + length, end)) for at, length in regions]
    found = levels.frame_windows(spans, DENSE, offset, end, 1.0)
    assert len(set(found)) == len(found)
    shown = levels.joined((w.start_s, w.end_s) for w in found)
    grid = 8.0  # starts are snapped to a sixteenth of the window
    for low, high in spans:
        assert any(a <= low + grid / 2 + 1.0 and high - grid / 2 - 1.0 <= b for a, b in shown), (spans, found)
    for w in found:
        assert offset - 1e-9 <= w.start_s and w.end_s <= end + 1e-9
        assert abs((w.start_s - offset) - round(w.start_s - offset)) < 1e-6  # frames that are stored


def test_frame_windows_centre_and_tile():
    assert [w.start_s for w in levels.frame_windows([(500, 560)], DENSE, 0, 3600, 1.0)] == [472]  # 470 on a grid of 8
    assert [w.start_s for w in levels.frame_windows([(480, 560), (540, 600)], DENSE, 0, 3600, 1.0)] == [480]  # touching spans are one
    assert len(levels.frame_windows([(0, 360)], DENSE, 0, 3600, 1.0)) == 5
    assert [w.start_s for w in levels.frame_windows([(3590, 3600)], DENSE, 0, 3600, 1.0)] == [3480]
    assert levels.frame_windows([(0, 90)], DENSE, 0, 90, 1.0) == [levels.Window(0, 90, 120)]


@given(boundary=st.floats(0, 100), low=st.sampled_from([0.0, 3.3]), length=st.floats(2, 100))
@settings(max_examples=50, deadline=None)
def test_boundary_windows_are_inside_and_hold_the_boundary(boundary, low, length):
    level = LevelConfig(name="patch", kind="patch", span_s=8.0, stride_s=8.0, tokens=32, budget=64)
    boundary = low + boundary / 100 * length
    window = levels.boundary_window(boundary, level, low, low + length)
    assert low - 1e-9 <= window.start_s and window.end_s <= low + length + 1e-9
    assert window.start_s - 0.25 - 1e-6 <= boundary <= window.end_s + 0.25 + 1e-6
    assert abs(window.start_s * 4 - round(window.start_s * 4)) < 1e-6


def test_levels_follow_the_duration():
    every = small_config().grounding.levels
    names = lambda duration: [level.name for level in levels.applicable(every, duration)]
    assert names(3600) == ["nested", "sparse", "dense", "patch"]
    assert names(600) == ["sparse", "dense", "patch"]
    assert names(40) == ["dense", "patch"]


def test_levels_in_the_wrong_order_are_refused():
    nested, sparse, dense, patch = small_config().grounding.levels
    for wrong in ((dense, sparse), (patch,), (nested, dense), (dense, dense), ()):
        with pytest.raises(ConfigError, match=r"grounding\.levels"):
            levels.check_order(wrong)
