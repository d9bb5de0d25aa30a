"""Lines of kept patches: everything kept is there once, where it was, and the lines are few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data.compaction import lines

VISION = VisionConfig(width=8, layers=1, heads=2, mlp=8, patch=2, grids=((4, 6),), merge=2)
FRAMES = np.random.default_rng(0).integers(0, 256, (9, 8, 12, 3), dtype=np.uint8)  # 4 x 6 patches, 6 tokens


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 4))
def test_everything_kept_is_there_once(seed, share, together):
    keep = np.random.default_rng(seed).random((9, 6)) < share
    patches = host_frames.encoder_patches(FRAMES, VISION).reshape(9, 6, 4, -1)
    rows, columns = (x.reshape(6, 4) for x in host_frames.positions((4, 6), 2))
    found = np.full((keep.sum(), 4, patches.shape[-1]), np.nan, np.float32)
    frames, cells = np.nonzero(keep)
    used = 0
    for part in lines(FRAMES, keep, VISION, 24, together):
        assert part.patches.shape == (together, 24, 12) and part.tokens.shape == (together, 6)
        for line in range(together):
            places = np.flatnonzero(part.tokens[line] >= 0)
            used += len(places) > 0
            numbers, segments = part.tokens[line, places], part.segments[line].reshape(6, 4)
            assert (segments[part.tokens[line] < 0] == 0).all() and (part.patches[line].reshape(6, 4, -1)[part.tokens[line] < 0] == 0).all()
            assert np.isnan(found[numbers]).all()
            found[numbers] = part.patches[line].reshape(6, 4, -1)[places]
            assert np.array_equal(part.rows[line].reshape(6, 4)[places], rows[cells[numbers]])
            assert np.array_equal(part.columns[line].reshape(6, 4)[places], columns[cells[numbers]])
            # Two tokens share a segment where they are of one frame, and then only.
            alike = segments[places, 0][:, None] == segments[places, 0]
            assert np.array_equal(alike, frames[numbers][:, None] == frames[numbers])
    assert np.array_equal(found, patches[keep])
    assert used <= 2 * math.ceil(keep.sum() / 6)  # any two lines but the last hold more than one together


def test_small_frames_share_a_line():
    keep = np.zeros((9, 6), bool)
    keep[0], keep[1:, :1] = True, True
    held = [(part.tokens >= 0).sum(1).tolist() for part in lines(FRAMES, keep, VISION, 24, 2)]
    assert held == [[6, 6], [2, 0]]


def test_what_does_not_fit_is_refused():
    for length in (20, 22):
        with pytest.raises(ValueError, match="cannot hold 6 tokens of 4 patches"):
            next(lines(FRAMES, np.ones((9, 6), bool), VISION, length, 1))
