"""The host's mask is the device's, for every choice of the pruner."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from revision_jax.config import PrunerConfig
from revision_jax.data.frames import cut
from revision_jax.data.pruning import kept
from revision_jax.models.pruner import keep_mask, kept_change
from tests.golden.make_processing import still


@pytest.mark.parametrize(("keep", "reference", "least"), itertools.product(("first", "last"), ("previous", "last_kept"), (0, 2)))
def test_masks_equal_those_of_the_device(keep, reference, least):
    film = still(7)
    film[5] = film[4] + np.random.default_rng(0).integers(0, 2, film[4].shape, dtype=np.uint8) // 2  # nothing but the smallest changes
    pruner = PrunerConfig(keep=keep, reference=reference, min_tokens=least)
    expected = keep_mask(kept_change(cut(film, 14, 2), 2, pruner), pruner)
    found = kept(film, 14, 2, pruner, (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < found[1:-1].mean() < 0.9
    assert kept(film[:1], 14, 2, pruner, (0.5, 0.5, 0.5)).all()
