import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.data.windows import (
    frame_span,
    grid_index,
    instants,
    overlap,
    overlaps_any,
    shows,
    slot_frames,
    slot_times,
    span_seconds,
    window_count,
    window_span,
)


def test_the_example_of_the_module_text():
    times = np.arange(20.0)
    assert frame_span(times, np.ones(20, bool), (10.4, 13.2)) == (11, 13)
    assert span_seconds(11, 13, 0.0, 1.0) == (10.5, 13.5)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 90), st.floats(2, 60), st.sampled_from([0.5, 1.0, 4.0]))
def test_reading_an_answer_back_is_at_most_half_a_slot_off(start, length, rate):
    slots = int(200 * rate)
    times, moment = slot_times(0.0, 200.0, slots), (start, start + max(length, 1.0 / rate))
    first, last = frame_span(times, np.ones(slots, bool), moment)
    begin, end = span_seconds(first, last, 0.0, rate)
    assert abs(begin - moment[0]) <= 0.5 / rate + 1e-5
    assert abs(end - moment[1]) <= 0.5 / rate + 1e-5


def test_instants_are_the_nearest_slots():
    mask = np.ones(20, bool)
    assert instants(10.0, 20.0, mask, (10.4, 13.6)) == (0, 4)
    assert instants(10.0, 20.0, mask, (5.0, 100.0)) == (0, 19)  # an end beyond the window is its last slot
    assert instants(10.0, 20.0, np.arange(20) < 8, (12.0, 29.0)) == (2, 7)
    assert instants(10.0, 20.0, np.zeros(20, bool), (12.0, 14.0)) is None


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 9000), st.floats(0, 125), st.floats(0, 125))
def test_instants_are_the_released_labels(start, first, last):
    """min(round((t - window start) / 125 * 250), 249), whatever frames the slots show."""
    start_s, (first, last) = start / 5, sorted((first, last))
    released = tuple(min(round((start_s + t - start_s) / 125 * 250), 249) for t in (first, last))
    assert instants(start_s, 125.0, np.ones(250, bool), (start_s + first, start_s + last)) == released


def test_even_slots_are_the_nearest_frames():
    index = slot_frames(np.array([2.0, 3.0]), 4.0, 4, 5.0, 100, "even")
    assert index.tolist() == [[10, 15, 20, 25], [15, 20, 25, 30]]
    assert slot_frames(2.0, 4.0, 4, 5.0, 100, "even").tolist() == [10, 15, 20, 25]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 9374), st.sampled_from([(125.0, 250, 5.0), (500.0, 250, 2.0), (50.0, 100, 5.0), (20.0, 10, 1.0)]))
def test_linspace_slots_are_the_released_ones(start, numbers):
    """numpy.linspace(start, end, slots, dtype=int32) of the window's frames, as the released loader has it; the end is the film's last frame at most."""
    span, slots, rate = numbers
    length = round(span * rate)
    for count in (start + length + 1, start + length, 100_000):
        end = min(start + length, count - 1)
        assert slot_frames(start / rate, span, slots, rate, count, "linspace").tolist() == np.linspace(start, end, slots, dtype=np.int32).tolist()


def test_linspace_slots_of_a_film_that_ends_before_lie_outside_of_it():
    index = slot_frames(0.0, 10.0, 5, 1.0, 6, "linspace")
    assert index.tolist() == [0, 2, 5, 7, 10]


def test_frame_span_shows_only_what_the_mask_has_and_finds_the_nearest_slot_of_a_blink():
    times = np.arange(10.0)
    mask = np.arange(10) < 6
    assert frame_span(times, mask, (3.0, 9.0)) == (3, 5)
    assert frame_span(times, mask, (3.1, 3.4)) == (3, 3)
    assert frame_span(times, mask, (8.0, 9.0)) is None
    assert frame_span(times, np.zeros(10, bool), (3.0, 9.0)) is None


@pytest.mark.parametrize(
    "moment, expected",
    [
        ((0.0, 100.0), True), ((50.0, 60.0), True), ((96.0, 104.0), True), ((97.0, 107.0), False), ((60.0, 300.0), True), ((61.0, 300.0), False),
        ((100.0, 101.0), False),
    ],
)
def test_a_window_shows_half_an_event_or_two_fifths_of_itself(moment, expected):
    assert shows(moment, 0.0, 100.0) is expected


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 40000), st.floats(10, 200), st.floats(0.1, 1))
def test_the_windows_cover_the_film_and_none_is_superfluous(duration, span, share):
    stride = span * share
    count = window_count(duration, span, stride)
    assert (count - 1) * stride + span >= duration - 1e-3
    assert count == 1 or (count - 2) * stride + span < duration + 1e-3


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 500), st.floats(1, 400))
def test_window_span_is_the_run_of_windows_that_show_the_moment(start, length):
    starts, moment = np.arange(20) * 30.0, (start, start + length)
    first, last = window_span(starts, np.ones(20, bool), 60.0, moment)
    showing = [number for number, begin in enumerate(starts) if shows(moment, begin, begin + 60.0)]
    if showing:
        assert showing == list(range(first, last + 1))
    else:
        assert first == last and overlap(moment, starts[first], starts[first] + 60.0) == max(overlap(moment, s, s + 60.0) for s in starts)


def test_window_span_ignores_masked_windows():
    starts = np.arange(4) * 30.0
    assert window_span(starts, np.array([True, True, False, False]), 60.0, (30.0, 110.0)) == (0, 1)
    assert window_span(starts, np.zeros(4, bool), 60.0, (40.0, 110.0)) is None
    assert window_span(starts, np.ones(4, bool), 60.0, (900.0, 910.0)) is None


def test_overlaps_any_is_half_open():
    assert not overlaps_any(((0.0, 10.0), (20.0, 30.0)), 10.0, 20.0)
    assert overlaps_any(((0.0, 10.0), (20.0, 30.0)), 10.0, 20.1)


def test_grid_index_takes_the_nearest_frame():
    assert grid_index(slot_times(2.0, 4.0, 4), 5.0).tolist() == [10, 15, 20, 25]
    assert grid_index(np.array([0.1, 0.24, 0.26]), 2.0).tolist() == [0, 0, 1]
