"""Near-duplicates: who goes, for whom, and that it is right however many there are."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")

from revision_jax.curation.config import DuplicateConfig
from revision_jax.curation.duplicates import import_faiss, near_duplicates, neighbours, unit_features, unit_thumbnails
from revision_jax.errors import UserError

CONFIG = DuplicateConfig(features=0.95, picture=0.9)


def groups(sizes, width=16, seed=0, noise=0.01):
    """(vectors, thumbnails, group of each row), shuffled."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres, shown = rng.normal(size=(len(sizes), width)), rng.integers(30, 226, (len(sizes), 8, 8, 3))
    vectors = centres[group] + rng.normal(size=(len(group), width)) * noise
    thumbs = np.clip(shown[group] + rng.integers(-3, 4, (len(group), 8, 8, 3)), 0, 255).astype(np.uint8)
    return vectors, thumbs, group


def test_one_of_each_group_stays_the_first_in_order():
    vectors, thumbs, group = groups([1, 5, 2, 1, 3])
    order = np.random.default_rng(1).permutation(len(group)).tolist()
    gone = near_duplicates(vectors, thumbs, order, CONFIG)
    first = {g: next(row for row in order if group[row] == g) for g in range(5)}
    assert {one.row for one in gone} == set(range(len(group))) - set(first.values())
    assert all(one.of == first[group[one.row]] and one.features >= 0.95 and one.picture >= 0.9 for one in gone)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_what_goes_is_near_a_better_one_and_nothing_alike_stays(count, width, seed):
    rng = np.random.default_rng(seed)
    vectors, thumbs = rng.normal(size=(count, width)), rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    config = DuplicateConfig(features=0.8, picture=-1, neighbours=3)
    order = rng.permutation(count).tolist()
    gone = near_duplicates(vectors, thumbs, order, config)
    rows = {one.row for one in gone}
    unit = unit_features(vectors)
    assert len(rows) == len(gone)
    for one in gone:
        assert unit[one.row] @ unit[one.of] >= 0.8 - 1e-6 and order.index(one.of) < order.index(one.row)
    if count <= config.neighbours + 1:
        assert not rows & {one.of for one in gone}
    left = [row for row in range(count) if row not in rows]
    cosines = unit[left] @ unit[left].T
    assert not (np.triu(cosines, 1) >= 0.8 + 1e-6).any()


def test_more_alike_than_neighbours_are_looked_at():
    vectors, thumbs, group = groups([300, 1], noise=0.0)
    gone = near_duplicates(vectors, thumbs, list(range(len(group))), replace(CONFIG, neighbours=4))
    assert len(gone) == 299


def test_features_alone_do_not_decide_nor_thumbnails_alone():
    vectors, thumbs, _ = groups([1, 1])
    assert near_duplicates(vectors[[0, 0]], thumbs, [0, 1], CONFIG) == []
    assert near_duplicates(vectors, thumbs[[0, 0]], [0, 1], CONFIG) == []
    assert len(near_duplicates(vectors[[0, 0]], thumbs, [0, 1], replace(CONFIG, picture=-1.0))) == 1


def test_thumbnails_forget_brightness_and_two_flat_pictures_agree():
    rng = np.random.default_rng(0)
    shown = rng.integers(60, 160, (8, 8, 3))
    flat = np.stack([np.full((8, 8, 3), level) for level in (40, 200)])
    unit = unit_thumbnails(np.concatenate([np.stack([shown, shown * 1.2 + 10, 220 - shown]), flat]).astype(np.uint8))
    cosines = unit @ unit.T
    assert cosines[0, 1] > 0.99 and cosines[0, 2] < -0.9 and cosines[3, 4] > 0.999 and abs(cosines[0, 3]) < 0.1


def test_an_inverted_file_finds_what_the_whole_comparison_finds():
    vectors, thumbs, group = groups([2] * 200 + [1] * 200, width=32)
    order = list(range(len(group)))
    exact, inverted = (near_duplicates(vectors, thumbs, order, replace(CONFIG, exact=size, probes=8)) for size in (10**6, 0))
    assert len(exact) == 200 and {(one.row, one.of) for one in inverted} == {(one.row, one.of) for one in exact}
    few = neighbours(unit_features(vectors[:30]), 25, replace(CONFIG, exact=0, probes=1))  # lists hold fewer than are asked for
    assert few.shape == (30, 25) and few.min() == -1


def test_none_and_one():
    for count in (0, 1):
        assert near_duplicates(np.zeros((count, 4)), np.zeros((count, 8, 8, 3), np.uint8), list(range(count)), CONFIG) == []


def test_without_faiss_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r'pip install "revision-jax\[curate\]"'):
        import_faiss()
