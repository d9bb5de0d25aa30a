"""RejF1 and AUROC against hand-worked and brute-force counts; the fitted threshold against an exhaustive search."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import rejection

# few distinct values, so that ties are common
questions = st.lists(st.tuples(st.integers(0, 10).map(lambda i: i / 10), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({present for _, present in rows}) == 2
)


def test_rejection_f1_by_hand():
    assert rejection.rejection_f1(1.0, 1.0) == 100
    assert rejection.rejection_f1(0.0, 1.0) == 0
    assert rejection.rejection_f1(0.0, 0.0) == 0
    assert rejection.rejection_f1(0.8968, 0.6755) == pytest.approx(77.06, abs=0.01)  # CoEvoWhen's published FPR .1032, PosCov .6755


@given(questions)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    score, present = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in score[present] for b in score[~present]]
    assert rejection.auroc(score, present) == pytest.approx(np.mean(pairs))


def test_auroc_needs_both_kinds():
    assert np.isnan(rejection.auroc(np.array([0.3]), np.array([True])))


@given(questions)
def test_no_threshold_beats_the_fitted_one(rows):
    score, present = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    threshold, best = rejection.fit_threshold(score, present)

    def value(line):
        return rejection.rejection_f1(float((score[~present] < line).mean()), float((score[present] >= line).mean()))

    assert 0 <= threshold <= 1
    assert value(threshold) == pytest.approx(best)
    assert best >= max(value(line) for line in np.linspace(0, 1, 41)) - 1e-9


def test_intervals_that_touch_are_one():
    # 1 from 0.1 up to 0.6, whatever scores lie between, and once more from 0.75 to 0.9, the widest interval between two scores.
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9])
    assert rejection.best_threshold(score, lambda least: float(0.1 < least <= 0.6 or 0.75 < least <= 0.9)) == (pytest.approx(0.35), 1.0)


def test_threshold_lies_in_the_middle_of_the_widest_gap():
    threshold, best = rejection.fit_threshold(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]))
    assert (threshold, best) == (pytest.approx(0.5), 100)


def test_threshold_needs_both_kinds():
    with pytest.raises(ValueError, match="present and absent"):
        rejection.fit_threshold(np.array([0.5, 0.6]), np.array([True, True]))


@given(st.lists(st.tuples(st.integers(0, 2).map(lambda i: i / 2), st.booleans()), min_size=1, max_size=5))
def test_risk_is_the_mean_over_all_orders_of_equal_scores(rows):
    orders = [order for order in permutations(rows) if all(a[0] >= b[0] for a, b in pairwise(order))]
    counted = [[sum(not right for _, right in order[:n]) / n for n in range(1, len(rows) + 1)] for order in orders]
    found = rejection.risk_coverage(np.array([s for s, _ in rows]), np.array([right for _, right in rows]))
    np.testing.assert_allclose(found, np.mean(counted, 0))


def test_risk_coverage_by_hand():
    # right, wrong, right, in this order: risks 0, 1/2, 1/3
    np.testing.assert_allclose(rejection.risk_coverage(np.array([0.2, 0.9, 0.5]), np.array([True, True, False])), [0, 1 / 2, 1 / 3])


@given(st.lists(st.integers(0, 9).map(lambda i: i / 10), max_size=12), st.floats(0.5, 10), st.floats(0, 20))
def test_false_alarms_keep_to_the_limit_and_no_lower_threshold_does(scores, hours, limit):
    scores = np.asarray(scores, np.float64)
    threshold = rejection.false_alarm_threshold(scores, hours, limit)
    assert 0 <= threshold <= 1 and (scores >= threshold).sum() / hours <= limit + 1e-6
    lower = scores[scores < threshold]
    if len(lower):  # one more group of equal scores would be too many
        assert (scores >= lower.max()).sum() > np.floor(limit * hours + 1e-9)


def test_false_alarms_by_hand():
    scores = np.array([0.9, 0.6, 0.6, 0.2])  # in two hours
    assert rejection.false_alarm_threshold(scores, 2.0, 0.5) == pytest.approx(0.75)  # one alarm
    assert rejection.false_alarm_threshold(scores, 2.0, 1.0) == pytest.approx(0.75)  # two would be three
    assert rejection.false_alarm_threshold(scores, 2.0, 0.0) == pytest.approx(0.95)
    assert rejection.false_alarm_threshold(scores, 2.0, 2.0) == 0
    with pytest.raises(ValueError, match="2 false alarms in 2 hours have confidence 1, 1 are allowed"):
        rejection.false_alarm_threshold(np.array([1.0, 1.0]), 2.0, 0.5)
