import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.data.negatives import absent_before, free_starts, hard_window, is_absent, random_window, scored_window, strategy, unanswered
from revision_jax.data.windows import overlaps_any

moment = st.tuples(st.floats(0, 580), st.floats(0.2, 120)).map(lambda pair: (pair[0], pair[0] + pair[1]))
moments = st.lists(moment, min_size=1, max_size=5).map(tuple)


@settings(deadline=None, max_examples=50)
@given(moments, st.floats(5, 200), st.sampled_from([0.25, 1.0]))
def test_free_starts_are_exactly_the_windows_without_any_moment(moments, span, rate):
    count = round(600 * rate)
    free = set(free_starts(moments, count, rate, span).tolist())
    for start in range(0, max(0, count - round(span * rate)) + 1):
        assert (start in free) != overlaps_any(moments, start / rate, start / rate + span)


@settings(deadline=None, max_examples=50)
@given(moments, st.floats(5, 200), st.integers(0, 2**32))
def test_no_drawn_window_touches_a_moment(moments, span, seed):
    rng = np.random.default_rng(seed)
    likeness = rng.standard_normal(600).astype(np.float32)
    places, scores = rng.integers(0, 600, 40), rng.random(40, np.float32)
    free = free_starts(moments, 600, 1.0, span)
    drawn = [random_window(rng, free), hard_window(rng, free, likeness, round(span)), scored_window(rng, free, places, scores, 0.7, round(span))]
    assert all((start is None) == (len(free) == 0) for start in drawn[:2])
    for start in drawn:
        if start is not None:
            assert not overlaps_any(moments, float(start), start + span)
            assert 0 <= start <= max(0, 600 - round(span))


def test_hard_windows_hold_a_look_alike():
    frames = np.tile(np.array([0.0, 1.0], np.float32), (600, 1))
    frames[100:110] = frames[400:405] = (1.0, 0.0)  # the event, and what looks like it
    free = free_starts(((100.0, 110.0),), 600, 1.0, 60.0)
    starts = [hard_window(np.random.default_rng(seed), free, frames[:, 0], 60) for seed in range(200)]
    holding = [start for start in starts if start < 405 and start + 60 > 400]
    assert len(holding) > 30  # one of the four candidates; a random window holds it in one case of nine
    assert len(set(holding)) > 10  # at no fixed place of the window


def test_semi_hard_windows_score_high_but_below_the_truth():
    free = free_starts(((100.0, 110.0),), 600, 1.0, 60.0)
    places, scores = np.array([105, 200, 300, 400, 500, 550]), np.array([0.99, 0.95, 0.6, 0.5, 0.4, 0.3], np.float32)
    held = dict.fromkeys(places.tolist(), 0)
    for seed in range(200):
        start = scored_window(np.random.default_rng(seed), free, places, scores, 0.9, 40)
        for place in held:
            held[place] += start <= place < start + 40
    assert held[105] == held[200] == 0  # the moment itself, and what scores above it
    assert all(held[place] > 20 for place in (300, 400, 500, 550))
    assert scored_window(np.random.default_rng(0), free, places, scores, 0.2, 40) is None


def test_a_film_shorter_than_the_window_has_one_window():
    assert free_starts((), 30, 1.0, 120.0).tolist() == [0]
    assert free_starts(((3.0, 5.0),), 30, 1.0, 120.0).tolist() == []


@settings(deadline=None, max_examples=50)
@given(st.lists(moments, min_size=1, max_size=8), st.floats(0, 500))
def test_an_unanswered_question_has_nothing_in_the_window(answers, start):
    drawn = iter(answers)
    found = unanswered(lambda: next(drawn, None), lambda candidate: candidate, start, start + 60.0)
    fitting = [answer for answer in answers if not overlaps_any(answer, start, start + 60.0)]
    assert found == (fitting[0] if fitting else None)


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1), st.integers(0, 10000), st.integers(1, 64))
def test_every_batch_has_its_share_of_absent_examples(share, step, batch):
    count = sum(is_absent(step * batch + row, share) for row in range(batch))
    assert abs(count - share * batch) <= 1 + 1e-6
    assert absent_before(batch, share) == sum(is_absent(index, share) for index in range(batch))


def test_strategies_are_drawn_by_weight():
    rng = np.random.default_rng(0)
    drawn = [strategy(rng, (("random", 3.0), ("swap", 1.0), ("hard", 0.0))) for _ in range(2000)]
    assert 0.70 < drawn.count("random") / 2000 < 0.80 and "hard" not in drawn
    with pytest.raises(ValueError, match="no strategy"):
        strategy(rng, (("random", 0.0),))
