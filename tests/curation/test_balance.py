"""Categories: a common thing is seen as one, and cut to its share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("faiss")

from revision_jax.curation.balance import categories, excess
from revision_jax.curation.config import BalanceConfig

CONFIG = BalanceConfig(share=2.0, categories=10)


def world(common=300, others=9, each=20, width=16, seed=0):
    """(ids, vectors, which are of the common thing)."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(others + 1, width)) * 3
    thing = rng.permutation(np.repeat(np.arange(others + 1), [common] + [each] * others))
    return [f"i{n}" for n in range(len(thing))], centres[thing] + rng.normal(size=(len(thing), width)) * 0.4, thing == 0


def test_the_common_thing_is_one_category_and_is_cut_to_its_share():
    ids, vectors, common = world()
    found = categories(vectors, CONFIG)
    assert len(set(found[common])) == 1 and not set(found[common]) & set(found[~common])
    gone = excess(ids, vectors, CONFIG)
    cap = math.ceil(2.0 * len(ids) / len(set(found)))
    assert len(gone) == 300 - cap and all(common[one.row] and (one.size, one.cap) == (300, cap) for one in gone)
    assert [one.row for one in gone] == sorted({one.row for one in gone})


def test_things_near_the_mean_of_all_are_told_apart():
    """In a narrow cone, the rarer things near its middle: by their plain cosines these are one thing, and too much of it."""
    ids, vectors, common = world(common=100, others=18)
    middle = 40 * np.random.default_rng(1).normal(size=vectors.shape[1])
    near = vectors - vectors.mean(0)
    near[~common] *= 0.1
    gone = excess(ids, near + middle, replace(CONFIG, categories=19))
    assert len(gone) > 30 and all(common[one.row] for one in gone)


def test_it_is_a_function_of_its_arguments_and_the_draw_has_a_seed():
    ids, vectors, _ = world()
    assert excess(ids, vectors, CONFIG) == excess(ids, vectors, CONFIG)
    other = excess(ids, vectors, replace(CONFIG, seed=1))
    assert {one.row for one in other} != {one.row for one in excess(ids, vectors, CONFIG)}


def test_nothing_goes_where_nothing_is_too_much_or_nothing_is_asked():
    ids, vectors, _ = world(common=20)
    assert excess(ids, vectors, CONFIG) == []
    ids, vectors, _ = world()
    assert excess(ids, vectors, replace(CONFIG, share=0.0)) == [] and excess([], vectors[:0], CONFIG) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_images(count):
    _, vectors, _ = world()
    for config in (BalanceConfig(), CONFIG):
        found = categories(vectors[:count], config)
        assert len(found) == count and found.min() >= 0 and found.max() < count
    assert len(set(categories(vectors[[0] * count], CONFIG))) <= count
