"""The whole model's pure functions on a tiny random state: pads, the pruned encoder, and rows that predict the right token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.models import revision, signal
from tests import tiny

CONFIG = tiny.config()
NUMBERS = jnp.arange(20, 40)


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_the_abstract_state_is_the_state():
    made, told = tiny.state(), revision.abstract_state(CONFIG)
    assert jax.tree.structure(made) == jax.tree.structure(told)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(told), strict=True))
    assert set(made) == {"params", *(f"{part}/{name}" for part in ("adapter", "lora") for name in ("sparse", "dense", "patch"))}


def test_frames_do_not_see_each_other():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3)), jnp.uint8)
    together = encode_images(tiny.state()["params"], images)
    alone = encode_images(tiny.state()["params"], images[1:2])
    np.testing.assert_allclose(together["tokens"][1], alone["tokens"][0], atol=1e-5)
    assert together["tokens"].shape == (3, 4, tiny.WIDTH) and together["frame"].shape == (3, tiny.WIDTH)


def test_encoding_half_of_an_image_is_encoding_it_with_the_other_half_masked():
    images = np.full((1, 16, 16, 3), 100, np.uint8)
    images[0, 8:, 8:] = np.random.default_rng(1).integers(0, 255, (8, 8, 3))  # the last block has all the contrast
    images[0, :8, 8:] += np.arange(8, dtype=np.uint8)[:, None, None]  # the second a little
    params = tiny.state()["params"]
    kept = encode_images(params, jnp.asarray(images), keep=0.5)
    patches, rows, columns, valid = revision.patchify(CONFIG, jnp.asarray(images))
    seen = jnp.repeat(jnp.asarray([[False, True, False, True]]), 4, axis=1)
    masked = encode_frames(params, patches, rows, columns, valid & seen, (4, 4))
    assert kept["tokens"].shape[1] == 2
    np.testing.assert_allclose(kept["tokens"][0], masked["tokens"][0, jnp.asarray([3, 1])], atol=1e-5)
    np.testing.assert_allclose(kept["frame"], masked["frame"], atol=1e-5)


encode_images = jax.jit(functools.partial(revision.encode_images, CONFIG), static_argnames="keep")
encode_frames = jax.jit(functools.partial(revision.encode_frames, CONFIG), static_argnums=5)
sparse_tokens = jax.jit(lambda state, *arrays: revision.sparse_tokens(CONFIG, state, "sparse", *arrays))
patch_visual = jax.jit(lambda state, *arrays: revision.patch_visual(CONFIG, state, "patch", *arrays))


@jax.jit
def dense_visual(state, frames, valid, level):
    level = None if level is None else jnp.repeat(level[..., None], 5, -1)  # the whole query and four phrases
    where = None if level is None else jnp.where(valid[..., None, None], jax.random.uniform(jax.random.key(1), (*level.shape, 2)), jnp.nan)
    match = None if level is None else signal.Match(level, where, jnp.ones((len(level), 2)))
    return revision.dense_visual(CONFIG, state, "dense", frames, valid, NUMBERS, match)


def dense(frames, valid, level=None):
    return dense_visual(tiny.state(), frames, valid, level)


@jax.jit
def answer_logits(state, visual, after, mask, answer):
    return revision.answer_logits(CONFIG, state, "dense", visual, jnp.asarray([1]), after, mask, answer)


def logits(visual, after=None, mask=None, answer=None):
    batch = visual.valid.shape[0]
    after = jnp.tile(jnp.asarray([[7, 8, 9, 10, 3, 3]]), (batch, 1)) if after is None else after
    mask = jnp.arange(6) < 4 if mask is None else mask
    answer = jnp.tile(jnp.asarray([[50, 51, 52, 2]]), (batch, 1)) if answer is None else answer
    return answer_logits(tiny.state(), visual, after, jnp.broadcast_to(mask, after.shape), answer)


def test_garbage_in_any_pad_changes_no_logit():
    valid = jnp.arange(12) < 9
    frames, level = random(2, 12, tiny.WIDTH), jax.random.uniform(jax.random.key(5), (2, 12))
    mask = jnp.broadcast_to(valid, (2, 12))
    clean = logits(dense(frames, mask, level))
    dirty = dense(jnp.where(mask[..., None], frames, jnp.nan), mask, jnp.where(mask, level, 1e4))
    np.testing.assert_array_equal(clean, logits(dirty))
    after = jnp.asarray([[7, 8, 9, 10, 299, 211]] * 2)
    np.testing.assert_array_equal(clean, logits(dense(frames, mask, level), after=after))


def test_a_longer_pad_changes_nothing():
    visual = dense(random(1, 12, tiny.WIDTH), jnp.ones((1, 12), bool))
    short = logits(visual, after=jnp.asarray([[7, 8, 9, 10]]), mask=jnp.ones(4, bool))
    np.testing.assert_allclose(short, logits(visual), atol=1e-5)


def test_each_row_predicts_the_token_after_it():
    visual = dense(random(1, 12, tiny.WIDTH), jnp.ones((1, 12), bool))
    full = logits(visual, answer=jnp.asarray([[50, 51, 52, 2]]))
    changed = logits(visual, answer=jnp.asarray([[50, 99, 98, 2]]))
    np.testing.assert_allclose(full[:, :2], changed[:, :2], atol=1e-6)  # row 1 has seen token 0 alone
    assert float(jnp.abs(full[:, 2] - changed[:, 2]).max()) > 1e-3


def test_the_search_signal_reaches_the_answer_but_not_the_prefix():
    frames, valid = random(1, 12, tiny.WIDTH), jnp.ones((1, 12), bool)
    low, high = (dense(frames, valid, jnp.eye(12)[None, i]) for i in (2, 8))
    np.testing.assert_array_equal(low.tokens, high.tokens)
    assert float(jnp.abs(logits(low) - logits(high)).max()) > 1e-4


def test_a_cue_for_each_slot_stands_behind_the_question():
    frames, valid = random(1, 12, tiny.WIDTH), jnp.arange(12)[None] < 9
    visual = dense(frames, valid, jax.random.uniform(jax.random.key(5), (1, 12)))
    assert visual.cues.shape == (1, 12, 24) and visual.cues_valid.tolist() == valid.tolist()
    # Numbered as the slots are: the same features at other slots make other cues.
    flat = dense(frames, valid, jnp.full((1, 12), 0.5))._replace(cues_valid=valid)
    assert float(jnp.abs(flat.cues[0, 4] - flat.cues[0, 5]).max()) > 1e-3
    clean = logits(visual)
    np.testing.assert_array_equal(clean, logits(visual._replace(cues=jnp.where(valid[..., None], visual.cues, jnp.nan))))
    assert float(jnp.abs(clean - logits(visual._replace(cues=visual.cues[:, ::-1]))).max()) > 1e-4
    assert float(jnp.abs(clean - logits(visual._replace(cues=None))).max()) > 1e-4


def test_sparse_tokens_ignore_padded_frames_and_words():
    frames, query = random(3, 4, tiny.WIDTH), random(3, 5, tiny.WIDTH, seed=1)
    valid, words = jnp.broadcast_to(jnp.arange(4) < 3, (3, 4)), jnp.broadcast_to(jnp.arange(5) < 4, (3, 5))
    clean, summary = sparse_tokens(tiny.state(), frames, valid, query, words)
    dirty, _ = sparse_tokens(
        tiny.state(), jnp.where(valid[..., None], frames, jnp.nan), valid, jnp.where(words[..., None], query, 1e4), words
    )
    np.testing.assert_allclose(clean, dirty, atol=1e-5)
    assert clean.shape == (3, 24) and summary.shape == (3, tiny.WIDTH)


@pytest.mark.parametrize("moved", [1, 3])
def test_patches_that_did_not_change_are_not_shown(moved):
    tokens = random(1, 8, 4, tiny.WIDTH)
    change = jnp.zeros((1, 8, 4)).at[0, 5, :moved].set(50.0)
    valid = jnp.ones((1, 8), bool)
    visual, dropped = patch_visual(tiny.state(), tokens, change, valid, NUMBERS, random(1, 5, tiny.WIDTH), random(1, 2))
    assert int(visual.valid.sum()) == 4 + moved + 6  # the first frame whole, what changed, one token of each other frame
    assert int(dropped[0]) == 0
    other = jnp.where(change[..., None] > 0, tokens, tokens * 1.0).at[0, 6, 3].set(1e4)  # a patch that was pruned
    again, _ = patch_visual(tiny.state(), other, change, valid, NUMBERS)
    np.testing.assert_array_equal(visual.tokens, again.tokens)


def test_what_exceeds_the_budget_is_counted():
    tokens, valid = random(1, 8, 4, tiny.WIDTH), jnp.ones((1, 8), bool)
    _, dropped = patch_visual(tiny.state(), tokens, jnp.full((1, 8, 4), 50.0), valid, NUMBERS)
    assert int(dropped[0]) == 8 * 4 - 16
