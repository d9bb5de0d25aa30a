"""Properties of non-maximum suppression."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.grounding import merging

span = st.tuples(st.floats(0, 1000), st.floats(0.1, 100)).map(lambda x: (x[0], x[0] + x[1]))
scored = st.lists(st.tuples(span, st.floats(0, 1)), min_size=1, max_size=30)


@given(items=scored, iou=st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_what_stays_does_not_overlap_and_what_goes_has_a_better_neighbour(items, iou):
    spans, scores = np.array([s for s, _ in items]), np.array([x for _, x in items])
    kept = merging.nms(spans, scores, iou)
    assert kept[0] == np.argmax(scores) and (np.diff(scores[kept]) <= 0).all()
    for i, a in enumerate(kept):
        others = np.delete(kept, i)
        assert not len(others) or merging.overlaps(spans[a], spans[others]).max() <= iou + 1e-12
    for gone in set(range(len(items))) - set(kept.tolist()):
        better = [k for k in kept if scores[k] >= scores[gone]]
        assert merging.overlaps(spans[gone], spans[better]).max() > iou
    assert merging.nms(spans[kept], scores[kept], iou).tolist() == list(range(len(kept)))  # once is enough


@given(items=scored, iou=st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_soft_keeps_all_and_only_lowers(items, iou):
    spans, scores = np.array([s for s, _ in items]), np.array([x for _, x in items])
    order, lowered = merging.soft_nms(spans, scores, iou)
    assert sorted(order.tolist()) == list(range(len(items)))
    assert (np.diff(lowered) <= 1e-12).all() and (lowered <= scores[order] + 1e-12).all() and (lowered >= 0).all()
    alone = [i for i in range(len(items)) if merging.overlaps(spans[i], np.delete(spans, i, 0)).max(initial=0) <= iou]
    assert lowered[[order.tolist().index(i) for i in alone]] == pytest.approx(scores[alone])


def test_overlap_by_hand():
    assert merging.overlaps(np.array([0.0, 10.0]), np.array([[5.0, 15.0], [10.0, 20.0], [0.0, 10.0], [2.0, 4.0]])) == pytest.approx([1 / 3, 0, 1, 0.2])
    assert merging.nms(np.array([[0.0, 10], [1, 11], [50, 60]]), np.array([0.5, 0.9, 0.7]), 0.4).tolist() == [1, 2]


@given(items=scored, threshold=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_answers_reach_the_threshold_and_no_two_are_of_one_moment(items, threshold):
    items = sorted(items, key=lambda item: -item[1])
    spans, scores = np.array([s for s, _ in items]), np.array([x for _, x in items])
    found = merging.accepted(spans, scores, threshold)
    assert found[0] == (scores[0] >= threshold) and (scores[found] >= threshold).all()
    shared = lambda a, b: min(a[1], b[1]) - max(a[0], b[0]) >= 0.5 * min(a[1] - a[0], b[1] - b[0])
    for i in np.flatnonzero(scores >= threshold):
        assert found[i] != any(shared(spans[i], spans[j]) for j in range(i) if found[j])


def test_the_end_of_a_moment_is_no_second_answer():
    spans = np.array([[10.0, 18.0], [16.0, 18.0], [17.5, 30.0], [40.0, 50.0], [4.0, 60.0]])
    assert merging.accepted(spans, np.array([0.9, 0.8, 0.8, 0.7, 0.6]), 0.65).tolist() == [True, False, True, True, False]
    assert merging.accepted(spans, np.array([0.9, 0.8, 0.8, 0.7, 0.7]), 0.65).tolist() == [True, False, True, True, False], "nor one that covers them"
    assert merging.accepted(np.zeros((0, 2)), np.zeros(0), 0.5).tolist() == []


def test_how_many_answers_there_are_is_another_question_than_whether_there_is_one():
    spans = np.array([[0.0, 5.0], [10.0, 15.0], [20.0, 25.0]])
    accepted = lambda *confidence, further=None: merging.accepted(spans, np.array(confidence), 0.6, further).tolist()
    assert accepted(0.9, 0.5, 0.2, further=0.3) == [True, True, False] and accepted(0.9, 0.5, 0.2) == [True, False, False]
    assert accepted(0.5, 0.5, 0.4, further=0.3) == [False] * 3, "no further one without a first"
    assert accepted(0.9, 0.7, 0.7, further=0.8) == [True, False, False]
