"""RejF1 and AUROC against hand-worked and brute-force counts; the fitted threshold against an exhaustive search."""

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


def test_threshold_lies_in_the_middle_of_the_widest_gap():
    threshold, best = rejection.fit_threshold(np.array([0.9, 0.8, 0.2, 0.1]), np.array([True, True, False, False]))
    assert (threshold, best) == (pytest.approx(0.5), 100)


def test_threshold_needs_both_kinds():
    with pytest.raises(ValueError, match="present and absent"):
        rejection.fit_threshold(np.array([0.5, 0.6]), np.array([True, True]))
