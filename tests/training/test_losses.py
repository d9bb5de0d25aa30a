"""Losses of the stages: formulas in NumPy, and what gets a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import StageConfig
from revision_jax.models import revision
from revision_jax.training import losses
from tests import tiny

CONFIG = tiny.config()
CONSTANTS = {"number_ids": jnp.arange(20, 40), "before_ids": jnp.asarray([1]), "caption_id": 1}


def text(rng, *shape):
    return jnp.asarray(rng.integers(4, 300, shape), jnp.int32), jnp.ones(shape, bool)


def pictures(seed=0, batch=3, captions=2, tags=4):
    rng = np.random.default_rng(seed)
    caption_ids, caption_mask = text(rng, batch, captions, 6)
    tag_ids, tag_mask = text(rng, 1, tags, 6)
    return {
        "images": jnp.asarray(rng.integers(0, 255, (batch, 16, 16, 3)), jnp.uint8),
        "caption_ids": caption_ids, "caption_mask": caption_mask, "labels": jnp.asarray(rng.random((batch, batch * captions)) < 0.4),
        "phrase_labels": jnp.asarray(rng.random((batch, 4, batch * captions)) < 0.4),
        "travels": jnp.asarray(rng.integers(-1, 2, (batch, captions, 2)), jnp.float32),
        "tag_ids": jnp.repeat(tag_ids, batch, 0), "tag_mask": jnp.repeat(tag_mask, batch, 0), "tag_labels": jnp.asarray(rng.random((batch, tags)) < 0.4),
    }  # fmt: skip


def test_the_contrastive_loss_is_its_formula():
    batch, params = pictures(batch=4, captions=3), tiny.state()["params"]
    batch["tag_labels"] = batch["tag_labels"].at[2, 2:].set(False)
    loss, metrics = jax.jit(lambda s, b: losses.contrastive_loss(CONFIG, s, b))(tiny.state(), batch)
    tokens = np.asarray(jax.jit(lambda p, x: revision.encode_images(CONFIG, p, x))(params, batch["images"])["tokens"], np.float64)
    scale, bias = float(jnp.exp(params["similarity"]["scale"])), float(params["similarity"]["bias"])

    encode_text = jax.jit(lambda p, ids: revision.encode_text(CONFIG, p, ids, jnp.ones(ids.shape, bool)))

    def logits(ids, which=0):
        vector = np.asarray(encode_text(params, ids)["vectors"][:, which], np.float64)
        cosine = np.einsum("bne,ce->bcn", tokens, vector) / np.linalg.norm(tokens, axis=-1)[:, None] / np.linalg.norm(vector, axis=-1)[None, :, None]
        return np.log(np.exp(scale * cosine + bias).sum(-1))

    def cross_entropy(z, y):
        return np.log1p(np.exp(np.where(y, -z, z)))

    captions = batch["caption_ids"].reshape(12, 6)
    pairs = cross_entropy(logits(captions), np.asarray(batch["labels"]))
    own = np.arange(12)[None] // 3 == np.arange(4)[:, None]
    tags = cross_entropy(logits(batch["tag_ids"][0]), np.asarray(batch["tag_labels"]))
    pair = np.asarray(batch["tag_labels"])[:, 2:].any(1)
    assert pair.any() and not pair.all(), "one picture at least holds no pair, and is not asked which covers which"
    phrases = [cross_entropy(logits(captions, 1 + f), np.asarray(batch["phrase_labels"][:, f])) for f in range(4)]
    expected = pairs[own].mean() + 8 * pairs[~own].mean() + tags[:, :2].mean() + tags[pair, 2:].mean()
    expected += 0.5 * sum(p[own].mean() + 8 * p[~own].mean() for p in phrases)
    for part in (2, 3):  # of what a picture with a pair shows, which part it plays
        seen = own & np.asarray(batch["phrase_labels"][:, part - 2]) & pair[:, None]
        assert seen.any() and (own & ~seen).any()
        expected += phrases[part][seen].mean()
    said = np.asarray(encode_text(params, captions)["motion"])
    expected += 4 * np.square(said - np.asarray(batch["travels"]).reshape(-1, 2)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["own_loss"]) == pytest.approx(pairs[own].mean(), rel=1e-4)


def test_the_answer_loss_counts_valid_tokens_by_weight():
    rng = np.random.default_rng(0)
    logits, ids = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32), jnp.asarray([[1, 2, 0], [3, 0, 0]])
    mask, weight = jnp.asarray([[True, True, False], [True, False, False]]), jnp.asarray([1.0, 3.0])
    surprise = -np.asarray(jax.nn.log_softmax(logits))
    expected = (surprise[0, 0, 1] + surprise[0, 1, 2] + 3 * surprise[1, 0, 3]) / 5
    loss, _ = losses.answer_loss(logits, ids, mask, weight)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    garbage = jnp.where(mask[..., None], logits, 1e4)
    assert float(losses.answer_loss(garbage, ids, mask, weight)[0]) == pytest.approx(expected, rel=1e-5)


def question(rng, batch):
    query_ids, query_mask = text(rng, batch, 12)
    after_ids, after_mask = text(rng, batch, 10)
    answer_ids, answer_mask = text(rng, batch, 6)
    return {
        "query_ids": query_ids, "query_mask": query_mask, "after_ids": after_ids, "after_mask": after_mask, "answer_ids": answer_ids,
        "answer_mask": answer_mask, "weight": jnp.ones(batch),
    }  # fmt: skip


def features(rng, *shape):
    return jnp.asarray(rng.normal(size=(*shape, tiny.WIDTH)), jnp.float16)


def batch_of(kind):
    rng = np.random.default_rng(3)
    if kind == "dense":
        return {**question(rng, 2), "frames": features(rng, 2, 12), "tokens": features(rng, 2, 12, 4), "frame_mask": jnp.ones((2, 12), bool)}
    if kind == "sparse":
        return {
            **question(rng, 2), "frames": features(rng, 2, 5, 4), "tokens": features(rng, 2, 5, 4, 4), "frame_mask": jnp.ones((2, 5, 4), bool),
            "window_mask": jnp.asarray([[True] * 5, [True] * 3 + [False] * 2]),
        }  # fmt: skip
    change = jnp.asarray(rng.uniform(0, 9, (2, 8, 4)), jnp.float16)
    return {**question(rng, 2), "tokens": features(rng, 2, 8, 4), "change": change, "frame_mask": jnp.ones((2, 8), bool)}


@pytest.mark.parametrize("kind", ["dense", "sparse", "patch"])
def test_grounding_trains_lora_and_adapter_and_leaves_the_encoders_alone(kind):
    stage = StageConfig(level=kind)
    loss = losses.stage_loss(CONFIG, stage, CONSTANTS)
    value, grads = jax.jit(jax.value_and_grad(lambda s: loss(s, batch_of(kind), jax.random.key(0))[0]))(tiny.state())
    assert np.isfinite(float(value))
    size = {name: float(jnp.abs(leaf).max()) for name, leaf in paths.flatten(grads).items()}
    for name in size:
        if name.startswith(("params/vision", "params/text", "params/similarity", "params/projection")):
            assert size[name] == 0, name
    assert size[f"lora/{kind}/layers/attention/q/b"] > 0 and size[f"lora/{kind}/cues/fc1/kernel"] > 0 and size[f"lora/{kind}/layers/signal_scale"] > 0
    assert all(value == 0 for name, value in size.items() if name.startswith(("lora/", "adapter/")) and name.split("/")[1] != kind)


def test_padded_windows_do_not_change_the_loss():
    stage = StageConfig(level="sparse")
    batch = batch_of("sparse")
    loss = jax.jit(losses.stage_loss(CONFIG, stage, CONSTANTS))
    mask = batch["window_mask"]
    dirty = {**batch, "frames": jnp.where(mask[..., None, None], batch["frames"], 1e4), "tokens": jnp.where(mask[..., None, None, None], batch["tokens"], 1e4)}
    key = jax.random.key(0)
    np.testing.assert_allclose(loss(tiny.state(), batch, key)[0], loss(tiny.state(), dirty, key)[0], rtol=1e-6)


def test_the_language_stage_trains_the_decoder_alone():
    rng = np.random.default_rng(5)
    full_ids, full_mask = text(rng, 3, 8)
    after_ids, after_mask = text(rng, 3, 10)
    answer_ids, answer_mask = text(rng, 3, 6)
    batch = {
        **pictures(), "full_ids": full_ids, "full_mask": full_mask, "point_slots": jnp.asarray(rng.integers(-1, 6, (3, 12)), jnp.int32),
        "point_query": jnp.asarray([0, 3, 5]), "point_after_ids": after_ids, "point_after_mask": after_mask, "point_answer_ids": answer_ids,
        "point_answer_mask": answer_mask,
    }  # fmt: skip
    loss = losses.stage_loss(CONFIG, StageConfig(name="language", task="language"), CONSTANTS)
    grads = paths.flatten(jax.jit(jax.grad(lambda s: loss(s, batch, jax.random.key(0))[0]))(tiny.state()))
    moved = {name for name, leaf in grads.items() if float(jnp.abs(leaf).max()) > 0}
    assert {"params/decoder/embed/embedding", "lora/dense/layers/signal_scale"} <= moved
    assert any(name.startswith("adapter/dense") for name in moved) and any(name.startswith("adapter/patch") for name in moved)
    assert not any(name.startswith(("params/vision", "params/text", "params/similarity", "adapter/sparse")) for name in moved)
