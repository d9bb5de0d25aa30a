"""Span metrics against cases worked by hand, and properties that must hold for any spans."""

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
        assert moments.recall(found, truth, 5, iou) >= moments.recall(found, truth, 1, iou)
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
