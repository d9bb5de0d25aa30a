"""Calibration error by hand, and temperatures that undo a known distortion."""

import numpy as np
import pytest

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
