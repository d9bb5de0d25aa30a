"""The host's mask is the device's, for every choice of the pruner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from revision_jax.config import PrunerConfig
from revision_jax.data.frames import cut
from revision_jax.data.pruning import judged, kept, measured
from revision_jax.models.pruner import keep_mask, kept_change
from tests.golden.make_processing import still


@pytest.mark.parametrize(("keep", "reference", "least"), itertools.product(("first", "last"), ("previous", "last_kept"), (0, 2)))
def test_masks_equal_those_of_the_device(keep, reference, least):
    film = still(7)
    film[5] = film[4] + np.random.default_rng(0).integers(0, 2, film[4].shape, dtype=np.uint8) // 2  # nothing but the smallest changes
    pruner = PrunerConfig(keep=keep, reference=reference, min_tokens=least)
    expected = keep_mask(kept_change(cut(film, 14, 2), 2, pruner), pruner)
    np.testing.assert_allclose(measured(film, 14, 2, pruner, (0.5, 0.5, 0.5)), kept_change(cut(film, 14, 2), 2, pruner), rtol=1e-6)
    found = kept(film, 14, 2, pruner, (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < found[1:-1].mean() < 0.9
    assert kept(film[:1], 14, 2, pruner, (0.5, 0.5, 0.5)).all()


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("frames", [0, 1, 5, 8])
def test_frames_that_are_there_are_judged_as_on_the_device(keep, frames):
    """Of stored changes, too: float16, and a first frame that was compared with one before it."""
    pruner = PrunerConfig(threshold=0.7, keep=keep, min_tokens=1)
    change, valid = np.random.default_rng(frames).uniform(0, 2, size=(8, 4)).astype(np.float16), np.arange(8) < frames
    change[1:3, 1] = np.float16(0.7)  # which is a little more
    np.testing.assert_array_equal(judged(change[valid], pruner), np.asarray(keep_mask(change, pruner, valid))[valid])
