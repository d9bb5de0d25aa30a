"""A limit of device memory: what is chosen, by hand and in general, and that it changes no answer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax import checkpoint
from revision_jax.errors import UserError
from revision_jax.grounding import memory
from revision_jax.grounding.grounder import Grounder
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.search import Searcher
from revision_jax.models.quantize import quantize_state
from tests.grounding.conftest import random_film

QUERIES = ["a red ring", "a blue square", "small circles"]
# GB of each level's programs by their rows, beside 14 GB of weights.
TABLE = {("", 1): 1, ("sparse", 4): 9, ("sparse", 2): 5, ("sparse", 1): 3, ("dense", 8): 16, ("dense", 4): 8, ("dense", 2): 4, ("dense", 1): 2}
BATCHES = {"": (1,), "sparse": (4, 2, 1), "dense": (8, 4, 2, 1)}


@pytest.mark.parametrize(
    ("limit", "sparse", "dense", "cache"),
    [
        (40, 4, 8, 10),  # all as the config has it; what is left, 40 - 14 - 16, are prefixes
        (32, 4, 8, 2),  # 14 + 16 + 2 just fit
        (31, 4, 4, 8),  # not any more: 15 beside the cache's 2. Of the dense level's 8 and the sparse one's 9 the larger counts
        (24, 2, 4, 2),  # 8 beside the cache
        (20, 1, 2, 2),  # 4 beside the cache
        (18, 1, 1, 1),  # 2 beside the cache do not do for the sparse level: as much as its calls of one row take, 3
        (17, 1, 1, 0),
    ],
)
def test_a_choice_by_hand(limit, sparse, dense, cache):
    found = memory.choose(limit, 14, 2, BATCHES, lambda *row: TABLE[row])
    assert found == memory.Arrangement({"": 1, "sparse": sparse, "dense": dense}, cache)


def test_too_little_by_hand():
    assert memory.choose(16, 14, 2, BATCHES, lambda *row: TABLE[row]) is None
    assert memory.smallest(BATCHES, lambda *row: TABLE[row]) == 3


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(0, 100), st.integers(0, 40), st.lists(st.tuples(st.integers(1, 16), st.integers(0, 30), st.integers(1, 5)), min_size=1))
def test_what_is_chosen_fits_and_is_the_most(limit, weights, cache, levels):
    batches = {str(i): memory.halvings(batch) for i, (batch, *_) in enumerate(levels)}
    bytes_of = lambda level, rows: levels[int(level)][1] + rows * levels[int(level)][2]
    found = memory.choose(limit, weights, cache, batches, bytes_of)
    if found is None:
        assert weights + memory.smallest(batches, bytes_of) > limit
        return
    most = max(bytes_of(level, rows) for level, rows in found.batches.items())
    assert found.cache >= 0 and weights + most + found.cache == limit
    least = memory.smallest(batches, bytes_of)
    for level, rows in found.batches.items():
        assert rows in batches[level]
        larger = [other for other in batches[level] if other > rows]
        # One more would take from the cache what the config gives it, or, where that is not to be had, more than calls of one row need.
        assert all(bytes_of(level, other) > min(limit - weights - cache, max(least, limit - weights - cache)) for other in larger)


def test_halvings_are_few():
    assert memory.halvings(8) == (8, 4, 2, 1) and memory.halvings(1) == (1,) and memory.halvings(6) == (6, 3, 1)


@pytest.mark.parametrize(("text", "count"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("800", 800), ("7b", 7), ("2mb", 2 * 10**6)])
def test_amounts(text, count):
    assert memory.parse_bytes("--limit", text) == count


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "24 Go", "1e9"])
def test_what_is_no_amount(text):
    with pytest.raises(UserError, match=r"--limit: .* is no amount of memory; write it as 24GB"):
        memory.parse_bytes("--limit", text)


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_the_state_is_counted_as_it_is_held(config, state, weights):
    held = jax.tree.map(lambda x: jnp.asarray(x, memory.stored_dtype(config, weights)), state)
    held = quantize_state(held) if weights == "int8" else held
    assert memory.size(memory.held_state(config, weights)) == sum(leaf.nbytes for leaf in jax.tree.leaves(held))


def with_levels(config, *names, **grounding):
    levels = tuple(level for level in config.grounding.levels if level.name in names)
    return dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels, **grounding))


@pytest.mark.slow
def test_a_limit_changes_no_answer(config, state, tokenizer):
    config = with_levels(config, "dense", prefix_cache_mb=1)
    weights = memory.size(memory.held_state(config))
    needs = {rows: memory.measured(config, tokenizer, None, "dense", rows) for rows in (1, 2, 4)}
    image = memory.measured(config, tokenizer, None, "", 1)
    assert needs[1] < needs[2] < needs[4]
    with pytest.raises(UserError, match=r"is too little, the smallest arrangement takes .* as float32\); about .* --weights bfloat16 or .* --weights int8"):
        memory.fitted(config, tokenizer, None, weights)
    limit = weights + max(image, needs[2]) + (1 << 20)
    small = memory.fitted(config, tokenizer, None, limit)
    (level,) = small.grounding.levels
    assert needs[level.batch] + weights <= limit - (small.grounding.prefix_cache_mb << 20) and (level.batch == 4) == (needs[4] <= max(image, needs[2]))
    least = dataclasses.replace(small, grounding=dataclasses.replace(small.grounding, prefix_cache_mb=0, levels=(dataclasses.replace(level, batch=1),)))
    film = random_film(130)
    wanted, found = (Searcher(one, Programs(one, state, tokenizer)).search(film, QUERIES) for one in (config, least))
    for one, other in zip(wanted, found, strict=True):
        assert [(m.start_s, m.end_s) for m in one.moments] == [(m.start_s, m.end_s) for m in other.moments]
        np.testing.assert_allclose([m.confidence for m in one.moments], [m.confidence for m in other.moments], atol=5e-5)


@pytest.mark.slow
def test_a_grounder_keeps_to_it(config, state, tokenizer, tmp_path):
    config = with_levels(config, "dense")
    # The state has more levels than that.
    state = {name: part for name, part in state.items() if name == "params" or name.endswith("/dense")}
    folder = checkpoint.export(state, config, tokenizer.save(tmp_path), tmp_path / "model")
    free = Grounder.from_pretrained(folder, cache_dir=tmp_path / "cache", weights="int8")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(free.programs.state))
    assert held == memory.size(memory.held_state(config, "int8"))  # quantised leaf by leaf
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(free.programs.state) == shapes(memory.held_state(config, "int8")), "the layers are apart"
    least = max(memory.measured(config, tokenizer, "int8", *row) for row in (("", 1), ("dense", 1)))
    tight = Grounder.from_pretrained(folder, cache_dir=tmp_path / "cache", weights="int8", memory_limit=held + least)
    assert tight.config.grounding.prefix_cache_mb == 0 and tight.searcher.prefixes.budget_bytes == 0
    with pytest.raises(UserError, match="is too little") as refused:
        Grounder.from_pretrained(folder, cache_dir=tmp_path / "cache", weights="int8", memory_limit=held + least - 1)
    # int8 is for the decoder's matrices alone: of so small a model the rest, float32, takes more.
    assert "\n" not in str(refused.value) and str(refused.value).endswith("with --weights bfloat16")
