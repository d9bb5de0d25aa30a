"""Calibration error by hand, and temperatures that undo a known distortion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.evaluation import calibration


def test_error_by_hand():
    # bin (0.8, 0.9]: two answers of 0.9, one right: gap 0.4; bin (0, 0.1]: two of 0.1, none right: gap 0.1
    confidence, correct = np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


def test_opposite_errors_cancel_inside_a_bin_only():
    same = calibration.expected_calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
    apart = calibration.expected_calibration_error(np.array([1.0, 0.0]), np.array([False, True]))
    assert same == pytest.approx(0) and apart == pytest.approx(1)


def test_bins_hold_their_upper_edge():
    assert calibration.bin_index(np.array([0.0, 0.1, 0.1000001, 0.5, 1.0])).tolist() == [0, 0, 1, 4, 9]


def test_confidence_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration.expected_calibration_error(np.array([1.2]), np.array([True]))


def test_reliability_counts_every_answer():
    data = calibration.reliability(np.array([0.05, 0.55, 0.58]), np.array([False, True, False]))
    assert sum(data.count) == 3 and data.count[5] == 2
    assert data.accuracy[5] == 0.5 and data.confidence[5] == pytest.approx(0.565)
    assert np.isnan(data.accuracy[9])


def test_temperature_recovers_a_known_distortion():
    generator = np.random.default_rng(0)
    honest = generator.uniform(0.05, 0.95, 20_000)
    correct = generator.uniform(size=honest.size) < honest
    boastful = calibration.apply_temperature(honest, 1 / 3)
    temperature = calibration.fit_temperature(boastful, correct)
    assert temperature == pytest.approx(3, rel=0.05)
    mended = calibration.apply_temperature(boastful, temperature)
    assert calibration.expected_calibration_error(mended, correct) < 0.02 < calibration.expected_calibration_error(boastful, correct)
    assert (np.argsort(mended, kind="stable") == np.argsort(boastful, kind="stable")).all()


def test_brier_by_hand():
    assert calibration.brier(np.array([0.8, 0.3]), np.array([True, False])) == pytest.approx((0.04 + 0.09) / 2)
    assert np.isnan(calibration.brier(np.array([]), np.array([], bool)))


answers = st.lists(st.tuples(st.integers(1, 9).map(lambda i: i / 10), st.booleans()), min_size=1, max_size=12)


@given(answers)
def test_isotonic_is_the_min_max_formula_at_its_knots(rows):
    confidence, correct = np.array([c for c, _ in rows]), np.array([right for _, right in rows])
    levels = np.unique(confidence)
    sums = [(correct[confidence == level].sum(), (confidence == level).sum()) for level in levels]

    def mean(low, high):
        return sum(right for right, _ in sums[low : high + 1]) / sum(count for _, count in sums[low : high + 1])

    count = len(levels)
    expected = {level: max(min(mean(low, high) for high in range(i, count)) for low in range(i + 1)) for i, level in enumerate(levels)}
    curve = calibration.fit_isotonic(confidence, correct)
    assert curve[0] == (0, 0) and curve[-1] == (1, 1) and (np.diff(curve, axis=0) >= 0).all()
    for x, y in curve[1:-1]:  # each block stands at its mean confidence
        inside = [level for level in levels if expected[level] == pytest.approx(y)]
        members = np.isin(confidence, inside)
        assert members.any() and x == pytest.approx(confidence[members].mean())
    assert {round(y, 9) for _, y in curve[1:-1]} == {round(float(value), 9) for value in expected.values()}


@given(answers)
def test_maps_keep_the_order(rows):
    confidence, correct = np.array([c for c, _ in rows]), np.array([right for _, right in rows])
    grid = np.linspace(0, 1, 21)
    curve, line = calibration.fit_isotonic(confidence, correct), calibration.fit_platt(confidence, correct)
    for made in (calibration.apply_curve(grid, curve), calibration.apply_platt(grid, *line)):
        assert (np.diff(made) >= 0).all() and made[0] >= 0 and made[-1] <= 1


def test_platt_recovers_a_known_distortion():
    generator = np.random.default_rng(0)
    honest = generator.uniform(0.05, 0.95, 20_000)
    correct = generator.uniform(size=honest.size) < honest
    told = calibration.apply_platt(honest, 2.0, 1.0)  # too sharp, and too sure
    slope, shift = calibration.fit_platt(told, correct)
    assert (slope, shift) == (pytest.approx(0.5, rel=0.05), pytest.approx(-0.5, rel=0.1))
    assert calibration.expected_calibration_error(calibration.apply_platt(told, slope, shift), correct) < 0.02
    curve = calibration.fit_isotonic(told, correct)
    assert calibration.expected_calibration_error(calibration.apply_curve(told, curve), correct) < 0.02


def test_a_confidence_that_says_nothing_becomes_the_share_of_right_answers():
    confidence, correct = np.array([0.1, 0.9, 0.1, 0.9]), np.array([True, False, True, True])
    made = calibration.apply_platt(confidence, *calibration.fit_platt(confidence, correct))
    np.testing.assert_allclose(made, (3 * 4 / 5 + 1 / 3) / 4, atol=0.02)  # Platt's aims: 4/5 of the right ones, 1/3 of the wrong one


def test_maps_need_answers():
    for fit in (calibration.fit_platt, calibration.fit_isotonic):
        with pytest.raises(ValueError, match="at least one answer"):
            fit(np.array([]), np.array([], bool))
