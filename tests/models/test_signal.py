"""The search signal against its formulas written out in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, SignalConfig
from revision_jax.models import signal

ALL = SignalConfig(enabled=True, similarity="late", channels=("level", "square", "rise", "fall"), cues=True, init=1.0)
PARAMS = {"scale": jnp.log(7.0), "bias": jnp.asarray(-3.0)}


def test_late_similarity_is_the_log_odds_that_any_token_shows_it():
    rng = np.random.default_rng(0)
    tokens, vector = rng.normal(size=(2, 5, 9, 8)).astype(np.float32), rng.normal(size=(2, 2, 8)).astype(np.float32)
    level, where = signal.similarity(PARAMS, ALL, jnp.asarray(tokens[..., 0, :]), jnp.asarray(tokens), jnp.asarray(vector)[:, None], (3, 3))
    for b, t, f in itertools.product(range(2), range(5), range(2)):
        cosine = [float(x @ vector[b, f] / np.linalg.norm(x) / np.linalg.norm(vector[b, f])) for x in tokens[b, t].astype(np.float64)]
        logits = 7.0 * np.asarray(cosine) - 3.0
        odds = np.log(np.exp(logits).sum())
        assert level[b, t, f] == pytest.approx(1 / (1 + np.exp(-odds)), rel=1e-4)
        weights = np.exp(logits) / np.exp(logits).sum()
        centres = [((i // 3 + 0.5) / 3, (i % 3 + 0.5) / 3) for i in range(9)]
        np.testing.assert_allclose(where[b, t, f], weights @ np.asarray(centres), atol=1e-4)


def test_pooled_similarity_needs_no_tokens():
    rng = np.random.default_rng(1)
    frame, vector = rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(1, 8)).astype(np.float32)
    level, _ = signal.similarity(PARAMS, SignalConfig(enabled=True), jnp.asarray(frame), None, jnp.asarray(vector), (1, 1))
    assert level.shape == (4, 1)
    cosine = frame @ vector[0] / np.linalg.norm(frame, axis=-1) / np.linalg.norm(vector)
    np.testing.assert_allclose(level[:, 0], 1 / (1 + np.exp(-(7 * cosine - 3))), rtol=1e-4)


def test_edges_stand_out_at_the_ends_of_a_span():
    level = jnp.asarray([0.0, 0, 0, 1, 1, 1, 1, 0, 0])
    made = signal.channels(ALL, level, jnp.ones(9, bool))
    assert int(jnp.argmax(made[:, 2])) == 3  # rise: the first
    assert int(jnp.argmax(made[:, 3])) == 6  # fall: the last
    np.testing.assert_allclose(made[:, 2], [0, 0, 0, 1, 0.5, 0, 0, -1, -0.5])
    np.testing.assert_allclose(made[:, 3], [0, -0.5, -1, 0, 0, 0.5, 1, 0, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_what_lies_under_the_mask_changes_nothing(seed, count):
    rng = np.random.default_rng(seed)
    level, where, mask = jnp.asarray(rng.random(12), jnp.float32), jnp.asarray(rng.random((12, 2)), jnp.float32), jnp.arange(12) < count
    dirty, far = jnp.where(mask, level, jnp.nan), jnp.where(mask[:, None], where, 1e4)
    np.testing.assert_array_equal(signal.channels(ALL, level, mask), signal.channels(ALL, dirty, mask))
    np.testing.assert_array_equal(signal.summary(ALL, level, mask), signal.summary(ALL, dirty, mask))
    twice = lambda x: jnp.stack([x, x], 1)
    motion = jnp.asarray([0.0, 1.0])
    clean = signal.cue_features(ALL, signal.Match(twice(level), twice(where), motion), mask)
    np.testing.assert_array_equal(clean, signal.cue_features(ALL, signal.Match(twice(dirty), twice(far), motion), mask))
    assert np.all(np.asarray(clean)[~mask] == 0) and np.isfinite(clean).all()
    assert np.all(np.asarray(signal.channels(ALL, dirty, mask))[~mask] == 0)


@pytest.mark.parametrize(("row", "column"), [(0.0, 0.5), (0.0, -0.5), (0.4, 0.0), (-0.4, 0.0)])
def test_travel_tells_which_way_and_how_far_a_match_moves(row, column):
    time = np.arange(40)
    level = (((time >= 10) & (time < 30)) * 0.9 + 0.02).astype(np.float32)
    share = np.clip((time - 10) / 20, 0, 1)
    where = np.stack([0.5 + row * (share - 0.5), 0.5 + column * (share - 0.5)], -1).astype(np.float32)
    far = np.asarray(signal.travel(jnp.asarray(level), jnp.asarray(where), 27))
    np.testing.assert_allclose(far[20], [row, column], atol=0.05)
    near = np.asarray(signal.travel(jnp.asarray(level), jnp.asarray(where), 3))
    np.testing.assert_allclose(near[20], [row * 7 / 20, column * 7 / 20], atol=0.02)  # seven of the twenty slots


def test_travel_is_its_weighted_least_squares():
    rng = np.random.default_rng(2)
    level, where = rng.random(15), rng.random((15, 2))
    made = signal.travel(jnp.asarray(level, jnp.float32), jnp.asarray(where, jnp.float32), 4)
    for t in range(15):
        near = np.arange(max(t - 4, 0), min(t + 5, 15))
        slope = [np.polyfit(near / 15, where[near, c], 1, w=level[near])[0] for c in range(2)]  # polyfit squares its weights
        mean = np.average(near / 15, weights=level[near] ** 2)
        lasts = np.sqrt(12 * np.average((near / 15 - mean) ** 2, weights=level[near] ** 2))
        np.testing.assert_allclose(made[t], np.asarray(slope) * lasts, atol=2e-3)


def test_a_far_event_does_not_blur_the_near_travel():
    time = np.arange(60)
    first, second = (time >= 5) & (time < 20), (time >= 40) & (time < 50)
    level = (0.95 * first + 0.6 * second).astype(np.float32)
    where = np.full((60, 2), 0.5, np.float32)
    where[first, 1] = np.linspace(0.2, 0.8, 15)
    where[second, 0] = np.linspace(0.9, 0.1, 10)
    row, column = np.asarray(signal.travel(jnp.asarray(level), jnp.asarray(where), 9))[12]
    assert column > 0.5 and abs(row) < 0.05


def test_a_cue_says_what_its_slot_shows():
    level = jnp.asarray([[0.0, 0.5, 0.0], [1.0, 0.9, 0.1]])
    where = jnp.asarray(np.random.default_rng(0).random((2, 3, 2)), jnp.float32)
    made = np.asarray(signal.cue_features(ALL, signal.Match(level, where), jnp.ones(2, bool)))
    assert made.shape == (2, signal.cue_size(ALL, 3))
    np.testing.assert_allclose(made[:, :3], level, atol=1e-6)
    np.testing.assert_allclose(made[0, 3:6], [-1.1513, 0, -1.1513], atol=1e-4)
    np.testing.assert_allclose(made[1, 4], np.log(9) / 10, atol=1e-5)
    np.testing.assert_allclose(made[1, 6:12], (2 * np.asarray(level)[1, :, None] * (np.asarray(where)[1] - 0.5)).reshape(-1), atol=1e-6)


@pytest.mark.parametrize("way", [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 0.0)])
def test_a_cue_says_whether_a_match_moves_as_the_query_says(way):
    time = np.arange(40)
    level = jnp.asarray((time >= 10) & (time < 30), jnp.float32)[:, None] * 0.9 + 0.02
    where = jnp.asarray(np.stack([np.full(40, 0.5), np.clip((time - 10) / 20, 0.1, 0.9)], -1), jnp.float32)[:, None]  # to the right
    made = np.asarray(signal.cue_features(ALL, signal.Match(level, where, jnp.asarray(way)), jnp.ones(40, bool)))
    assert made.shape == (40, signal.cue_size(ALL, 1, motion=True))
    agreed = made[20, -len(ALL.scales) :]
    assert agreed[-1] * way[1] >= 0.5 * abs(way[1]) and (way[1] or abs(agreed).max() < 0.05)
    bare = np.asarray(signal.cue_features(ALL, signal.Match(level, where), jnp.ones(40, bool)))
    np.testing.assert_array_equal(made[:, : bare.shape[1]], bare)


def test_top_mean_counts_missing_frames_as_zero():
    level = jnp.asarray([[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1], [0.5, 0.2]])
    np.testing.assert_allclose(signal.top_mean(level, jnp.ones(5, bool), 4), [0.75, 0.125], rtol=1e-6)
    np.testing.assert_allclose(signal.top_mean(level, jnp.asarray([True, True, False, False, False]), 4), [1.7 / 4, 0.05], rtol=1e-6)


def test_gradients_reach_every_good_token():
    tokens = jax.random.normal(jax.random.key(0), (1, 6, 8))
    grad = jax.grad(lambda t: signal.frame_logits(signal.token_logits(PARAMS, t, jnp.ones((1, 8))))[0])(tokens)
    assert bool(jnp.all(jnp.linalg.norm(grad, axis=-1) > 0))


def test_scales_must_be_positive():
    with pytest.raises(ConfigError, match=r"signal\.scales"):
        dataclasses.replace(ALL, scales=(3, 0))
