"""Span metrics against cases worked by hand, against references that count second by second or try everything, and properties that must hold for any spans."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import moments

second = st.floats(0, 36_000, allow_nan=False, width=32)
span = st.tuples(second, second).map(lambda pair: (min(pair), max(pair) + 0.5))
spans = st.lists(span, max_size=6)


def test_iou_by_hand():
    iou = moments.temporal_iou([(0, 10), (5, 15)], [(5, 15), (20, 30), (0, 20)])
    np.testing.assert_allclose(iou, [[5 / 15, 0, 10 / 20], [1, 0, 10 / 20]])


def test_iou_of_empty_and_touching_spans_is_zero():
    assert moments.temporal_iou([(3, 3)], [(3, 3)]) == 0
    assert moments.temporal_iou([(0, 3)], [(3, 6)]) == 0
    assert moments.temporal_iou([], [(3, 6)]).shape == (0, 1)


@given(spans, spans)
def test_iou_is_symmetric_and_a_fraction(first, second):
    iou = moments.temporal_iou(first, second)
    np.testing.assert_array_equal(iou, moments.temporal_iou(second, first).T)
    assert ((iou >= 0) & (iou <= 1)).all()


@given(span, st.floats(0, 1000, width=32))
def test_iou_does_not_depend_on_where_zero_is(one, shift):
    other = (one[0] + 1, one[1] + 2)
    moved = [(start + shift, end + shift) for start, end in (one, other)]
    np.testing.assert_allclose(moments.temporal_iou([one], [other]), moments.temporal_iou(moved[:1], moved[1:]), atol=1e-6)


@given(st.lists(span, min_size=1, max_size=5, unique=True))
def test_perfect_answers_score_one(truth):
    assert moments.top_iou(truth, truth) == 1
    assert moments.recall(truth, truth, 1, 0.7) == 1
    assert moments.mean_average_precision(truth, truth) == 1
    assert moments.temporal_f1(truth, truth) == 1


@given(spans, st.lists(span, min_size=1, max_size=4))
def test_more_ranks_and_looser_ious_never_hurt(found, truth):
    for iou in moments.RECALL_IOUS:
        by_rank = [moments.recall(found, truth, rank, iou) for rank in moments.RECALL_RANKS]
        assert by_rank == sorted(by_rank)
    strict = [moments.recall(found, truth, 1, iou) for iou in moments.RECALL_IOUS]
    assert strict == sorted(strict, reverse=True)


@given(spans, st.lists(span, min_size=1, max_size=4), st.randoms())
def test_f1_does_not_depend_on_order(found, truth, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert moments.temporal_f1(found, truth) == pytest.approx(moments.temporal_f1(shuffled, truth[::-1]))


def test_recall_takes_the_best_true_moment_and_counts_the_edge():
    truth = [(0, 10), (100, 110)]
    found = [(50, 60), (100, 105)]  # the second one has IoU 0.5 exactly with the second moment
    assert moments.recall(found, truth, 1, 0.1) == 0
    assert moments.recall(found, truth, 5, 0.5) == 1
    assert moments.recall(found, truth, 5, 0.7) == 0
    assert moments.recall([(0, 3)], [(0, 10)], 1, 0.3) == 1
    assert moments.top_iou(found[::-1], truth) == 0.5


def test_no_span_scores_zero():
    assert moments.recall([], [(0, 10)], 5, 0.1) == 0
    assert moments.top_iou([], [(0, 10)]) == 0
    assert moments.mean_average_precision([], [(0, 10)]) == 0
    assert moments.temporal_f1([], [(0, 10)]) == 0


def test_average_precision_by_hand():
    truth = [(10, 20), (50, 60)]
    assert moments.average_precision([(10, 20), (80, 90), (50, 60)], truth, 0.5) == pytest.approx(5 / 6)
    assert moments.average_precision([(80, 90), (10, 20), (50, 60)], truth, 0.5) == pytest.approx(2 / 3)  # interpolated: 2/3 at both
    assert moments.average_precision([(10, 20), (10, 20)], truth, 0.5) == pytest.approx(1 / 2)  # a repeat claims nothing
    # IoU 0.8: counts for 0.5 .. 0.8, seven of ten thresholds
    assert moments.mean_average_precision([(0, 8)], [(0, 10)]) == pytest.approx(0.7)


def test_f1_matches_one_to_one():
    truth = [(0, 10), (20, 30)]
    assert moments.matched([(0, 10), (1, 10)], truth, 0.5) == 1
    # found 3, true 2, both found at every IoU: 2 * 2 / 5
    assert moments.temporal_f1([(0, 10), (20, 30), (70, 80)], truth) == pytest.approx(0.8)
    # one of two, IoU 0.5: counts at 0.3 and 0.5, not at 0.7: 2/3 * 2/3
    assert moments.temporal_f1([(0, 5)], truth) == pytest.approx(2 / 3 * 2 / 3)


seconds = st.integers(0, 40)
whole = st.tuples(seconds, seconds).map(lambda pair: (min(pair), max(pair) + 1))


@given(st.lists(whole, max_size=4), st.lists(whole, max_size=4))
def test_iou_is_that_of_sets_of_seconds(first, second):
    sets = [[set(range(start, end)) for start, end in some] for some in (first, second)]
    expected = [[len(a & b) / len(a | b) for b in sets[1]] for a in sets[0]]
    np.testing.assert_allclose(moments.temporal_iou(first, second), np.reshape(expected, (len(first), len(second))))


def protocol_ap(found, truth, iou):
    """ActivityNet's, told in its own way: walk down the ranking, keep (recall, precision), and integrate the running maximum from the right."""
    taken, points = set(), []
    for rank, (start, end) in enumerate(found, 1):
        overlaps = []
        for number, (low, high) in enumerate(truth):
            both = max(0, min(end, high) - max(start, low))
            overlaps.append((both / ((end - start) + (high - low) - both), -number))
        for overlap, number in sorted(overlaps, reverse=True):
            if overlap >= iou and -number not in taken:
                taken.add(-number)
                break
        points.append((len(taken) / len(truth), len(taken) / rank))
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[number:])
        before = recall
    return area


@given(st.lists(whole, max_size=8), st.lists(whole, min_size=1, max_size=4))
def test_average_precision_is_the_protocols(found, truth):
    for iou in (0.5, 0.75):
        assert moments.average_precision(found, truth, iou) == pytest.approx(protocol_ap(found, truth, iou))


@given(st.lists(whole, max_size=5), st.lists(whole, max_size=4))
def test_a_greedy_matching_is_at_least_half_of_the_largest(found, truth):
    fits = moments.temporal_iou(found, truth) >= 0.5
    small, large = sorted((len(found), len(truth)))
    fits = fits if len(found) == small else fits.T
    largest = max((sum(fits[i, j] for i, j in enumerate(order)) for order in permutations(range(large), small)), default=0)
    assert largest / 2 <= moments.matched(found, truth, 0.5) <= largest


@given(st.lists(whole, max_size=5), st.lists(whole, max_size=4))
def test_f1_is_a_fraction_symmetric_and_falls_with_iou(found, truth):
    values = [moments.f1(found, truth, iou) for iou in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert all(0 <= value <= 1 for value in values) and values == sorted(values, reverse=True)
    assert values == pytest.approx([moments.f1(truth, found, iou) for iou in (0.1, 0.3, 0.5, 0.7, 0.9)])
    assert moments.temporal_f1(found, truth) == pytest.approx(np.mean([moments.f1(found, truth, iou) for iou in moments.F1_IOUS]))


def test_f1_by_hand():
    assert moments.f1([(0, 10), (40, 50)], [(0, 8)], 0.5) == pytest.approx(2 / 3)
    assert moments.f1([], [], 0.5) == 1 and moments.f1([(0, 1)], [], 0.5) == 0 and moments.f1([], [(0, 1)], 0.5) == 0


def test_lengths_include_their_upper_end():
    truth = [(0, 10), (20, 30.5), (50, 80), (100, 140), (0, 400)]
    parts = {name: moments.of_length(truth, low, high).tolist() for name, (low, high) in moments.LENGTHS.items()}
    assert parts == {"short": [[0, 10]], "middle": [[20, 30.5], [50, 80]], "long": [[100, 140], [0, 400]]}


def test_precision_looks_at_ten_spans():
    far = [(1000 + i, 1001 + i) for i in range(10)]
    assert moments.mean_average_precision([*far[:9], (0, 10)], [(0, 10)]) == pytest.approx(1 / 10)
    assert moments.mean_average_precision([*far, (0, 10)], [(0, 10)]) == 0


def test_spans_that_are_none():
    truth = [(0, 10)]
    assert moments.temporal_iou([(5, 5), (8, 2), (10, 20), (-10, 0)], truth).tolist() == [[0], [0], [0], [0]]
    assert moments.top_iou([(-10, 10)], truth) == 0.5  # what lies outside of the video counts as found in vain
