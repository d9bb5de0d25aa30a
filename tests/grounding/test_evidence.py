"""What speaks for a window or a span, by hand."""

import math

import numpy as np
import pytest

from revision_jax.grounding.confidence import CLIP, FEATURES
from revision_jax.grounding.evidence import distance_along, rank_score, said_above, span_features
from revision_jax.grounding.found import Ranked
from revision_jax.grounding.generate import Decoded
from revision_jax.grounding.levels import Window


def answers(known, score, entropy, present) -> Decoded:
    """One row's hypotheses."""
    known, entropy = np.array([known]), np.array([entropy])
    nothing = np.zeros_like(known, float)
    return Decoded(np.zeros(entropy.shape, int), known, known, np.array([score]), nothing, entropy, np.array([present]))


def test_features_of_a_span():
    decoded = answers(known=[2, 1], score=[-0.5, -2.0], entropy=[[0.5, 0.1], [0.4, 9.0]], present=99.0)
    similarity = np.array([0.1, 0.1, 0.8, 0.6, 0.1])
    seen = np.stack([similarity, np.ones(5), 0.5 * similarity], -1)  # the query, and two phrases of it
    first, second = (span_features(decoded, 0, j, (10.0, 12.0), seen, None, (2, 3), (1.5, -0.25), 1.0) for j in (0, 1))
    assert set(first) == set(FEATURES)
    assert first["present"] == CLIP and (first["score"], first["behind"]) == (-0.5, 0.0) and (second["score"], second["behind"]) == (-2.0, -1.5)
    assert (first["entropy"], first["max_entropy"]) == pytest.approx((0.3, 0.5)) and second["entropy"] == second["max_entropy"] == 0.4
    assert (first["inside_mean"], first["inside_max"], first["margin"]) == pytest.approx((0.7, 0.8, 0.6))
    assert (first["phrase_mean"], first["phrase_max"]) == pytest.approx((0.35, 0.4)), "the phrase that is seen least"
    assert (first["coarse_present"], first["coarse_score"], first["edge"]) == (1.5, -0.25, 1.0)
    assert first["log_duration"] == pytest.approx(math.log(2.0)) and first["astray"] == 0.0, "no way is said"


def test_what_goes_the_other_way_is_astray():
    decoded = answers(known=[2], score=[0.0], entropy=[[0.0, 0.0]], present=0.0)
    seen, ramp = np.ones((10, 1)), 0.1 * np.arange(10)
    said = lambda along: span_features(decoded, 0, 0, (0.0, 10.0), seen, along, (0, 9), (0.0, 0.0), 0.0)["astray"]
    assert (said(ramp), said(-ramp), said(np.full(10, 0.5))) == (0.0, 1.0, 1.0) and 0.0 < said(0.1 * ramp) < 1.0


def test_how_far_something_goes_along_a_way():
    seen, ten = np.ones(10), np.arange(10)
    assert distance_along(0.5 - 0.04 * ten, seen) == pytest.approx(-0.04 * (10**2 - 1) ** 0.5)
    assert distance_along(np.full(10, 0.7), seen) == pytest.approx(0.0) and distance_along(np.array([0.3]), np.ones(1)) == 0.0
    # where it is not seen its place says nothing
    place = np.where(ten < 8, 0.1 * ten, -5.0)
    assert distance_along(place, np.where(ten < 8, 1.0, 0.0)) == pytest.approx(0.8 * 0.1 * (8**2 - 1) ** 0.5)
    assert distance_along(place, np.zeros(10)) == 0.0, "nothing is seen at all"


def test_what_the_decoder_does_not_name_is_ranked_by_similarity():
    assert rank_score(2.0, 0.0, 0.9) > rank_score(2.0, 0.0, 0.1)
    assert rank_score(2.0, 0.6, 0.1) > rank_score(-2.0, 0.6, 0.1) and rank_score(9.0, 1.0, 1.0) <= 1.0


def test_what_was_said_above_is_that_of_the_best_window_that_shows_the_span():
    window = lambda start_s: Window(start_s, start_s + 60.0, 60.0)
    ranked = [Ranked(window(0.0), 0.3, 1.0, -1.0), Ranked(window(30.0), 0.9, 2.0, -0.1), Ranked(window(120.0), 1.0, 3.0, 0.0)]
    assert said_above(ranked, 40.0, 50.0) == (2.0, -0.1) and said_above(ranked, 10.0, 20.0) == (1.0, -1.0)
    assert said_above(ranked, 100.0, 110.0) == (0.0, -CLIP), "no window shows it"
    assert said_above([], 100.0, 110.0) == (0.0, 0.0), "there is no level above"
