"""DiffFP against the processor's formula, written here independently in NumPy, and what compaction promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import PrunerConfig
from revision_jax.models.pruner import compact, keep_mask, kept_change, pixel_change, prune, score

CONFIG = PrunerConfig()
COMPACT = jax.jit(compact, static_argnums=3)


def released_mask(pixels: np.ndarray, merge: int, threshold: float = 0.1, min_tokens: int = 1) -> np.ndarray:
    """What the image processor of transformers' video_llama_3 computes, for normalised pixels [T P C] of one video."""
    frames = len(pixels)
    tokens = pixels.reshape(frames, pixels.shape[1] // merge**2, -1)
    if frames == 1:
        return np.ones(tokens.shape[:2], bool)
    difference = np.abs(tokens[1:] - tokens[:-1]).mean(-1) * 255
    mask = np.concatenate([np.full_like(difference[:1], threshold + 1), difference]) > threshold
    mask[mask.sum(1) < min_tokens, :min_tokens] = True
    return mask


def video(seed: int, frames: int = 6, patches: int = 16, patch: int = 14) -> np.ndarray:
    """uint8 patches [T P C] in which each patch changes by sums around the released threshold (or by nothing)."""
    rng = np.random.default_rng(seed)
    pixels = [rng.integers(40, 200, (patches, 3 * patch**2)).astype(np.int32)]
    for _ in range(frames - 1):
        change = np.zeros_like(pixels[0])
        for p in range(patches):
            where = rng.choice(change.shape[1], rng.choice([0, 10, 28, 29, 30, 31, 40]), replace=False)
            change[p, where] = rng.choice([-1, 1], len(where))
        pixels.append(pixels[-1] + change)
    return np.stack(pixels).astype(np.uint8)


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("min_tokens", [0, 1, 3])
def test_masks_equal_the_released_ones(merge, min_tokens):
    config = PrunerConfig(min_tokens=min_tokens)
    for seed in range(10):
        bytes_ = video(seed)
        pixels = (bytes_.astype(np.float32) / 255 - 0.5) / 0.5
        expected = released_mask(pixels, merge, min_tokens=min_tokens)
        assert 0.1 < expected[1:].mean() < 0.95  # the case is worth something
        np.testing.assert_array_equal(keep_mask(pixel_change(bytes_, merge), config), expected)
        np.testing.assert_array_equal(keep_mask(pixel_change(pixels, merge), config), expected)


@pytest.mark.parametrize(("merge", "least"), [(1, 30), (2, 118)])
def test_threshold_in_whole_grey_levels(merge, least):
    """The released threshold is a sum of absolute differences: 30 of 588 values, 118 of 2,352."""
    for total, kept in ((least - 1, False), (least, True)):
        frames = np.full((2, merge**2, 588), 100, np.uint8)
        frames[1].reshape(-1)[:total] += 1
        mask = keep_mask(pixel_change(frames, merge), PrunerConfig(min_tokens=0))
        assert bool(mask[1, 0]) is kept


def test_uint8_change_honours_std_by_channel():
    rng = np.random.default_rng(0)
    bytes_, std = rng.integers(0, 256, (3, 4, 48), dtype=np.uint8), (0.2, 0.3, 0.5)
    pixels = bytes_.reshape(3, 4, 3, 16) / 255 / np.array(std)[:, None]
    expected = pixel_change(pixels.reshape(3, 4, 48).astype(np.float32), 2)
    np.testing.assert_allclose(pixel_change(bytes_, 2, std), expected, rtol=1e-5)


def test_one_frame_is_kept_whole():
    assert keep_mask(pixel_change(video(0, frames=1), 2), CONFIG).all()
    assert keep_mask(pixel_change(video(0, frames=1), 2), PrunerConfig(keep="last")).all()


def test_keep_last_is_keep_first_backwards():
    frames = video(3)
    first = keep_mask(pixel_change(frames[::-1], 2), PrunerConfig(keep="first"))
    np.testing.assert_array_equal(keep_mask(pixel_change(frames, 2), PrunerConfig(keep="last"))[::-1], first)


def drifting() -> np.ndarray:
    """One patch that brightens by one grey level a frame in 20 of its 588 values: never 30 since the frame before."""
    frames = np.full((9, 1, 588), 50, np.int32)
    frames[:, :, :20] += np.arange(9)[:, None, None]
    return frames.astype(np.uint8)


def test_last_kept_sees_a_drift_that_previous_misses():
    config = PrunerConfig(min_tokens=0)
    assert keep_mask(kept_change(drifting(), 1, config), config)[:, 0].tolist() == [True] + [False] * 8
    config = PrunerConfig(min_tokens=0, reference="last_kept")
    assert keep_mask(kept_change(drifting(), 1, config), config)[:, 0].tolist() == [True, False] * 4 + [True]
    config = PrunerConfig(min_tokens=0, reference="last_kept", keep="last")
    frames = drifting()[:8]
    assert keep_mask(kept_change(frames, 1, config), config)[:, 0].tolist() == [False, True] * 4


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("reference", ["previous", "last_kept"])
@pytest.mark.parametrize("garbage", [np.nan, 1e4])
def test_frames_outside_the_mask_change_nothing(keep, reference, garbage):
    config = PrunerConfig(keep=keep, reference=reference)
    pixels = (video(1).astype(np.float32) / 255 - 0.5) / 0.5
    padded = np.concatenate([pixels, np.full_like(pixels[:3], garbage)])
    frame_mask = np.arange(9) < 6
    exact = prune(jnp.asarray(pixels).reshape(6, 4, -1), kept_change(pixels, 2, config), config, 16)
    out = prune(jnp.asarray(padded).reshape(9, 4, -1), kept_change(padded, 2, config, frame_mask), config, 16, jnp.asarray(frame_mask))
    for ours, theirs in zip(out, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@functools.cache
def _tokens():
    return jnp.arange(24.0).reshape(4, 6, 1) + 1  # token i of the flat order has the value i + 1


@settings(max_examples=60, deadline=None)
@given(
    keep=st.lists(st.booleans(), min_size=24, max_size=24),
    change=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf")]), min_size=24, max_size=24),
    budget=st.sampled_from([1, 5, 24, 30]),
)
def test_compaction(keep, change, budget):
    keep, change = np.array(keep), np.array(change, np.float32)
    out = COMPACT(_tokens(), jnp.asarray(keep.reshape(4, 6)), jnp.asarray(change.reshape(4, 6)), budget)
    places = np.flatnonzero(keep)
    # Over budget: the most changed stay, among equals the earlier; always in order of time and space.
    expected = np.sort(sorted(places, key=lambda place: (-change[place], place))[:budget])
    valid = np.asarray(out.valid)
    assert valid.shape == (budget,) and valid.sum() == len(expected) and valid[: len(expected)].all()
    np.testing.assert_array_equal(np.asarray(out.tokens)[valid, 0], expected + 1)
    np.testing.assert_array_equal(np.asarray(out.frame * 6 + out.cell)[valid], expected)
    assert int(out.dropped) == len(places) - len(expected)
    assert (np.asarray(out.tokens)[~valid] == 0).all() and (np.asarray(out.frame)[~valid] == 0).all() and (np.asarray(out.cell)[~valid] == 0).all()


@settings(max_examples=20, deadline=None)
@given(keep=st.lists(st.booleans(), min_size=24, max_size=24), garbage=st.sampled_from([float("nan"), 1e4]))
def test_what_is_not_kept_changes_nothing(keep, garbage):
    keep = jnp.asarray(keep).reshape(4, 6)
    change = jnp.arange(24.0).reshape(4, 6)
    exact = COMPACT(_tokens(), keep, change, 5)
    out = COMPACT(jnp.where(keep[..., None], _tokens(), garbage), keep, jnp.where(keep, change, garbage), 5)
    for ours, theirs in zip(out, exact, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_first_frame_outlives_a_tight_budget_even_with_a_stored_change():
    """In the middle of a film frame one has a finite change to the frame before it."""
    change = jnp.full((4, 6), 5.0).at[0].set(0.0)
    out = prune(_tokens(), change, CONFIG, 6)
    assert out.frame.tolist() == [0] * 6 and int(out.dropped) == 18
    assert (score(change, CONFIG)[0] == jnp.inf).all()
