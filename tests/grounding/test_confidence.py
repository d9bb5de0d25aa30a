"""Entropies against a plain computation, orders kept, and a calibrator that finds what the data say."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.errors import UserError
from revision_jax.grounding import confidence as sure


def features(**changed):
    return dict.fromkeys(sure.FEATURES, 0.0) | {"entropy": 0.5, "max_entropy": 1.0} | changed


def test_entropy_of_known_distributions():
    assert sure.token_entropy(np.zeros((3, 8))) == pytest.approx([math.log(8)] * 3)
    assert sure.token_entropy(np.array([[100.0, 0, 0]])) == pytest.approx([0.0], abs=1e-9)
    p = np.array([0.5, 0.25, 0.25])
    assert sure.token_entropy(np.log(p) + 7.0) == pytest.approx(1.5 * math.log(2))


def test_mean_and_max_count_the_answers_steps_alone():
    entropy, length = np.array([[1.0, 2.0, 9.0, 9.0], [3.0, 0.0, 0.0, 5.0]]), np.array([2, 4])
    assert sure.mean_entropy(entropy, length) == pytest.approx([1.5, 2.0])
    assert sure.max_entropy(entropy, length) == pytest.approx([2.0, 5.0])
    assert sure.mean_entropy(entropy[:1], np.array([0])) == pytest.approx([0.0])


@given(low=st.floats(1e-3, 10), more=st.floats(1e-3, 10))
@settings(max_examples=50, deadline=None)
def test_more_entropy_is_less_confidence(low, more):
    for kind, name in (("entropy", "entropy"), ("max_entropy", "max_entropy"), ("calibrated", "entropy")):
        sharp, dull = (sure.confidence(kind, features(**{name: value})) for value in (low, low + more))
        assert 0 <= dull < sharp <= 1
    assert sure.squash(sure.reliability(low)) == pytest.approx(1 / (1 + low))


KINDS = ["entropy", "max_entropy", "log_probability", "presence", "calibrated"]


@given(values=st.lists(st.floats(-15, 15), min_size=3, max_size=3), kind=st.sampled_from(KINDS))
@settings(max_examples=50, deadline=None)
def test_every_kind_is_a_probability(values, kind):
    row = features(present=values[0], score=-abs(values[1]), behind=-abs(values[2]), entropy=abs(values[1]), max_entropy=abs(values[2]))
    assert 0 <= sure.confidence(kind, row) <= 1


def test_presence_and_relative_probability_weigh_in():
    assert sure.confidence("presence", features(present=2.0)) == pytest.approx(1 / (1 + math.exp(-2)))
    best, second = sure.confidence("entropy", features()), sure.confidence("entropy", features(behind=-1.0))
    assert second == pytest.approx(best * math.exp(-1))


def world(rng, n=2000):
    rows = [features(present=float(rng.normal()), score=float(rng.normal()), margin=float(rng.normal())) for _ in range(n)]
    logit = np.array([2.0 * row["present"] - 1.0 * row["margin"] - 0.5 for row in rows])
    return rows, rng.random(n) < 1 / (1 + np.exp(-logit)), logit


def test_the_fit_finds_the_weights():
    rows, correct, logit = world(np.random.default_rng(0))
    fitted = sure.fit(rows, correct, l2=1e-3)
    found = np.array([fitted.logit(row) for row in rows])
    assert np.corrcoef(found, logit)[0, 1] > 0.99
    assert abs(np.polyfit(logit, found, 1)[0] - 1) < 0.15
    assert abs(np.mean([fitted.apply(row) for row in rows]) - correct.mean()) < 1e-6  # the bias is not penalised
    assert fitted == sure.fit(rows, correct, l2=1e-3)


def test_a_stronger_ridge_means_smaller_weights_and_separable_data_stay_finite():
    rows, _, logit = world(np.random.default_rng(1), 200)
    norms = [np.linalg.norm(sure.fit(rows, logit > 0, l2=l2).weights) for l2 in (0.1, 1.0, 10.0)]
    assert np.isfinite(norms).all() and norms[0] > norms[1] > norms[2]
    with pytest.raises(UserError, match="right and wrong"):
        sure.fit(rows, np.ones(200, bool))


def test_round_trip_and_temperature():
    rows, correct, _ = world(np.random.default_rng(2), 100)
    fitted = sure.fit(rows, correct).with_threshold(0.7, 0.4, temperature=2.0)
    again = sure.Calibrator.from_dict(fitted.to_dict())
    assert again == fitted and again.threshold == 0.7 and again.further == 0.4
    assert again.apply(rows[0]) == pytest.approx(1 / (1 + math.exp(-again.logit(rows[0]) / 2)))
    assert sure.confidence("calibrated", rows[0], again) == again.apply(rows[0])


def test_a_hierarchy_has_its_own_calibrator_or_the_common_one():
    rows, correct, _ = world(np.random.default_rng(2), 100)
    fitted, other = sure.fit(rows, correct), sure.fit(rows, ~correct)
    both = sure.Calibrator.from_dict(json.loads(json.dumps({**fitted.to_dict(), "hierarchies": {"dense": other.to_dict()}})))
    assert hash(both) == hash(dataclasses.replace(both)), "a key of what is kept for it"
    assert both.of("dense") == other and both.of("sparse/dense") is both and both.of("dense").apply(rows[0]) != both.apply(rows[0])
    with pytest.raises(UserError, match=r"calibration.json: hierarchies.dense: lacks bias"):
        sure.Calibrator.from_dict({**fitted.to_dict(), "hierarchies": {"dense": {"features": [], "mean": [], "std": [], "weights": []}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hierarchies": 5}, "not numbers"),
        ({"weights": [1.0]}, "equally long"),
        ({"std": [0.0] * 12}, "equally long, std"),
        ({"bias": "much"}, "not numbers"),
        ({"features": ["luck"], "mean": [0], "std": [1], "weights": [1]}, "unknown feature luck"),
        ({"threshold": 2.0}, r"must lie in \[0, 1\], are 2.0"),
        ({"further": -0.1}, "threshold and further must lie in"),
        ({"further": "few"}, "not numbers"),
        ({"mean": None}, "not numbers"),
    ],
)
def test_a_calibration_that_cannot_be_used_says_why(change, message):
    n = len(sure.FEATURES)
    good = {"features": list(sure.FEATURES), "mean": [0.0] * n, "std": [1.0] * n, "weights": [0.0] * n, "bias": 0.0}
    sure.Calibrator.from_dict(good)
    with pytest.raises(UserError, match=message):
        sure.Calibrator.from_dict(good | change)
    with pytest.raises(UserError, match="lacks bias"):
        sure.Calibrator.from_dict({k: v for k, v in good.items() if k != "bias"})
