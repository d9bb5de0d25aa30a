"""Patch windows: whole frames, or kept patches alone in lines; what is dropped is not seen, and what is seen of one window is no business of another."""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError, PrunerConfig
from revision_jax.data import frames as host_frames
from revision_jax.data.frames import token_change
from revision_jax.data.pruning import kept
from revision_jax.extraction.patches import LINES, carried, encode_windows, encoder_programs
from revision_jax.extraction.video import CHUNK, encode_chunk
from revision_jax.models import revision
from tests.grounding.conftest import TOKENS, WIDTH, noisy_state, small_config

STATE = noisy_state(small_config())
PARAMS = STATE["params"]
ENCODE = jax.jit(functools.partial(revision.encode_frames, small_config()), static_argnums=5)
SIDE = 16  # pixels of a merged token


def config(where="before_encoder", threshold=20.0, **pruner):
    return dataclasses.replace(small_config(), pruner=PrunerConfig(where=where, threshold=threshold, budgets=(16,), **({"min_tokens": 0} | pruner)))


def film(seed: int, frames: int = 7, share: float = 0.4) -> np.ndarray:
    """uint8 [frames 32 32 3]: each of the four tokens turns into something else in that share of the frames, and stays as it is in the others."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 256, (32, 32, 3))
    found = [shown.copy()]
    for _ in range(1, frames):
        for row, column in np.ndindex(2, 2):
            if rng.random() < share:
                shown[row * SIDE : row * SIDE + SIDE, column * SIDE : column * SIDE + SIDE] = rng.integers(0, 256, (SIDE, SIDE, 3))
        found.append(shown.copy())
    return np.asarray(found, np.uint8)


def decided(model, frames: np.ndarray) -> np.ndarray:
    return kept(frames, model.vision.patch, model.vision.merge, model.pruner, model.vision.std)


def alone(model, frames: np.ndarray) -> np.ndarray:
    """The dense reference: the kept patches of each frame by themselves, one frame at a time; a dropped token is that of the frame before, or behind."""
    vision, keep = model.vision, decided(model, frames)
    rows, columns = (x.reshape(TOKENS, 4) for x in host_frames.positions((4, 4), 2))
    tokens = np.full((len(frames), TOKENS, WIDTH), np.nan, np.float32)
    for number, frame in enumerate(frames):
        cells = np.flatnonzero(keep[number])
        if not len(cells):
            continue
        patches = host_frames.encoder_patches(frame[None], vision).reshape(TOKENS, 4, -1)[cells]
        row, column = (x[cells].reshape(1, -1) for x in (rows, columns))
        made = ENCODE(PARAMS, patches.reshape(*row.shape, -1), row, column, np.ones(row.shape, bool), (2, 2 * len(cells)))
        tokens[number, cells] = made["tokens"][0]
    order = range(1, len(frames)) if model.pruner.keep == "first" else range(len(frames) - 2, -1, -1)
    for number in order:
        beside = tokens[number - 1 if model.pruner.keep == "first" else number + 1]
        tokens[number] = np.where(keep[number][:, None], tokens[number], beside)
    return tokens


def seen(model, *windows: np.ndarray) -> list[np.ndarray]:
    return [one.tokens.astype(np.float32) for one in encode_windows(model, PARAMS, windows)[0]]


close = lambda found, expected: np.testing.assert_allclose(found, expected, atol=6e-3)


@pytest.mark.parametrize("pruner", [{}, {"min_tokens": 2}, {"keep": "last"}, {"reference": "last_kept"}, {"keep": "last", "reference": "last_kept"}])
def test_kept_patches_in_lines_are_seen_as_alone(pruner):
    model, windows = config(**pruner), [film(seed) for seed in range(3)]
    assert all(0.3 < decided(model, window).mean() < 0.9 for window in windows)
    for found, window in zip(seen(model, *windows), windows, strict=True):
        close(found, alone(model, window))


def test_what_is_dropped_changes_nothing():
    model, window = config(), film(3)
    keep = decided(model, window)
    noise = np.random.default_rng(0).integers(-3, 4, window.shape) * ~keep.reshape(-1, 2, 2).repeat(SIDE, 1).repeat(SIDE, 2)[..., None]
    other = np.clip(window + noise, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(decided(model, other), keep)
    assert (other != window).mean() > 0.2
    (before,), (after,) = seen(model, window), seen(model, other)
    np.testing.assert_array_equal(before, after)


def test_windows_do_not_see_each_other():
    model, (one, two) = config(), (film(4), film(5))
    two[0] = one[-1]  # nothing would change from the one to the other
    together, others = seen(model, one, two), seen(model, two, film(6), one)
    for window, found in ((one, (together[0], others[2])), (two, (together[1], others[0]))):
        (expected,) = seen(model, window)
        for tokens in found:
            close(tokens, expected)
    close(together[1][0], seen(config("after_encoder"), two)[0][0])  # its first frame whole


@pytest.mark.parametrize("keep", ["first", "last"])
def test_frames_that_are_all_alike_show_what_the_whole_one_shows(keep):
    window = np.repeat(film(7, 1), 5, 0)
    ((found,), patches) = encode_windows(config(keep=keep), PARAMS, [window])
    whole = encode_chunk(small_config(), PARAMS, window[:1])["tokens"]
    close(found.tokens.astype(np.float32), np.repeat(whole, 5, 0).astype(np.float32))
    assert patches == LINES * 16


@pytest.mark.parametrize("where", ["before_encoder", "after_encoder"])
@pytest.mark.parametrize("reference", ["previous", "last_kept"])
def test_empty_windows(where, reference):
    model, window, nothing = config(where, reference=reference), film(8), np.zeros((0, 32, 32, 3), np.uint8)
    (first, found, last), patches = encode_windows(model, PARAMS, [nothing, window, nothing])
    assert first.tokens.shape == last.tokens.shape == (0, TOKENS, WIDTH) and first.change.shape == (0, TOKENS)
    np.testing.assert_array_equal(found.tokens.astype(np.float32), seen(model, window)[0])
    ((only,), none) = encode_windows(model, PARAMS, [nothing])
    assert only.tokens.shape == (0, TOKENS, WIDTH) and none == 0 < patches
    assert encode_windows(model, PARAMS, []) == ([], 0)


def test_after_the_encoder_every_frame_is_whole():
    model, windows = config("after_encoder"), [film(seed, 40) for seed in (9, 10)]
    found, patches = encode_windows(model, PARAMS, windows)
    for one, window in zip(found, windows, strict=True):
        expected = encode_chunk(model, PARAMS, window)["tokens"]
        close(one.tokens.astype(np.float32), expected.astype(np.float32))
        np.testing.assert_array_equal(one.change, token_change(window, 8, 2).astype(np.float16))
    assert patches == 2 * CHUNK * 16  # 80 frames


def test_where_all_is_kept_the_place_makes_no_difference():
    window = film(11, 9, share=1.0)
    close(seen(config(threshold=0.0), window)[0], seen(config("after_encoder", 0.0), window)[0])


def test_lines_hold_what_many_frames_keep():
    windows = [film(seed, 40, share=0.05) for seed in range(12, 18)]
    counts = [decided(config(), window).sum() for window in windows]
    _, patches = encode_windows(config(), PARAMS, windows)
    assert sum(counts) <= patches / 4 < sum(counts) + (LINES + 2) * TOKENS  # lines of four tokens: two may stay with room, and the last call's empty
    assert patches < encode_windows(config("after_encoder"), PARAMS, windows)[1] / 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from(["first", "last"]))
def test_dropped_tokens_are_those_they_are_alike_to(seed, count, keep):
    rng = np.random.default_rng(seed)
    tokens, there = rng.normal(size=(count, 3, 2)).astype(np.float16), rng.random((count, 3)) < 0.4
    there[0 if keep == "first" else -1] = True
    found = carried(tokens, there, PrunerConfig(keep=keep))
    for frame, cell in np.ndindex(count, 3):
        kept_ones = np.flatnonzero(there[:, cell])
        source = kept_ones[kept_ones <= frame].max() if keep == "first" else kept_ones[kept_ones >= frame].min()
        np.testing.assert_array_equal(found[frame, cell], tokens[source, cell])


@pytest.mark.parametrize("where", ["before_encoder", "after_encoder"])
def test_nothing_is_compiled_but_what_is_listed(where, caplog):
    model = config(where, threshold=21.0)
    for program, shapes in encoder_programs(model, PARAMS):
        program.prepare(*shapes)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for count in (1, 3, 9):
            encode_windows(model, PARAMS, [film(seed, 8 + seed) for seed in range(count)])
    assert [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()] == []


def test_an_encoder_that_sees_frames_by_themselves_alone_is_refused():
    small = small_config()
    for change in ({"class_token": True}, {"pool": "attention"}):
        vision = dataclasses.replace(small.vision, **change)
        with pytest.raises(ConfigError, match=r"pruner.where: must be 'after_encoder': .* of 'vision'"):
            dataclasses.replace(small, vision=vision, pruner=PrunerConfig(where="before_encoder"))
        dataclasses.replace(small, vision=vision)
