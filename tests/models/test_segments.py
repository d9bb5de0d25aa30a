"""Attention among slots of one segment against plain attention of each segment alone; the decoder and the encoder with segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError, DecoderConfig, LoraConfig, VisionConfig
from revision_jax.models import segments
from revision_jax.models.attention import attention
from revision_jax.models.decoder import Decoder, init_decoder
from revision_jax.models.segments import segment_attention
from revision_jax.models.vision import VisionTransformer

SEGMENTS = np.array([[1] * 5 + [2] * 7 + [3] + [0] * 4, [0] * 2 + [4] * 9 + [1] * 6], np.int32)


def inputs(seed: int = 0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, 17, heads, 8)), jnp.float32) for heads in (4, 2, 2)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [2**28, 2 * 4 * 17 * 5])
def test_each_segment_is_alone(causal, block, monkeypatch):
    monkeypatch.setattr(segments, "BLOCK", block)
    q, k, v = inputs()

    def total(q, k, v):
        out = segment_attention(q, k, v, jnp.asarray(SEGMENTS), causal=causal)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    expected, wanted = np.zeros(out.shape), [np.zeros(x.shape) for x in (q, k, v)]
    for row, own in enumerate(SEGMENTS):
        for segment in set(own.tolist()) - {0}:
            at = np.flatnonzero(own == segment)
            mask = jnp.tril(jnp.ones((len(at), len(at)), bool))[None, None] if causal else None
            alone = lambda q, k, v, mask=mask: (jnp.sum(jnp.sin(out := attention(q, k, v, mask=mask))), out)
            (_, part), grads = jax.value_and_grad(alone, (0, 1, 2), has_aux=True)(*(x[row : row + 1, at] for x in (q, k, v)))
            expected[row, at] = part[0]
            for whole, grad in zip(wanted, grads, strict=True):
                whole[row, at] = grad[0]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for found, whole in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-6)
    assert not np.asarray(out)[SEGMENTS == 0].any()


@pytest.mark.parametrize("scan", [True, False])
def test_the_decoder_reads_texts_side_by_side_as_one_after_another(scan):
    config = DecoderConfig(
        vocab=50, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, qkv_bias=True, tie_embeddings=True, lora=LoraConfig(rank=0), scan=scan
    )
    params = init_decoder(config, jax.random.key(0))
    decoder = Decoder(config)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 50, size) for size in (6, 9)]
    ids, own, positions = np.full((1, 18), 49), np.zeros((1, 18), np.int32), np.zeros((1, 18), np.int32)
    at = 0
    for number, text in enumerate(texts, start=1):
        here = slice(at, at + len(text))
        ids[0, here], own[0, here], positions[0, here] = text, number, np.arange(len(text))
        at += len(text)
    embeds = decoder.apply(params, jnp.asarray(ids), method=Decoder.embed)
    hidden, _ = decoder.apply(params, embeds, jnp.asarray(positions), jnp.asarray(own > 0), segments=jnp.asarray(own))
    logits = decoder.apply(params, hidden, method=Decoder.logits)
    for number, text in enumerate(texts, start=1):
        alone = decoder.apply(params, jnp.asarray(text)[None], method=Decoder.everything)
        np.testing.assert_allclose(logits[0, own[0] == number], alone[0], atol=1e-5)
    with pytest.raises(ValueError, match="packed rows"):
        decoder.apply(params, embeds, jnp.asarray(positions), jnp.asarray(own > 0), segments=jnp.asarray(own), rows=jnp.zeros((1, 1), jnp.int32))


def test_the_encoder_sees_pictures_that_share_a_line_as_pictures_apart():
    config = VisionConfig(width=16, layers=2, heads=2, mlp=24, patch=2, grids=((2, 2),), merge=1, pool="none")
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.normal(size=(1, 12, 12)), jnp.float32)
    rows, columns = (jnp.asarray(rng.integers(0, 5, (1, 12)), jnp.int32) for _ in range(2))
    own = jnp.asarray([[1] * 4 + [2] * 6 + [0] * 2], jnp.int32)
    encoder = VisionTransformer(config)
    params = encoder.init(jax.random.key(0), patches, rows, columns, own > 0)
    tokens = VisionTransformer(config, remat="full").apply(params, jnp.where((own > 0)[..., None], patches, jnp.nan), rows, columns, own > 0, own)["tokens"]
    for at in (slice(0, 4), slice(4, 10)):
        alone = encoder.apply(params, patches[:, at], rows[:, at], columns[:, at], own[:, at] > 0)["tokens"]
        np.testing.assert_allclose(tokens[:, at], alone, atol=1e-5)
    assert not np.asarray(tokens)[:, 10:].any()
    with pytest.raises(ConfigError, match="neither a class token nor a pooling head"):
        VisionTransformer(VisionConfig(width=16, layers=1, heads=2, mlp=24, patch=2, pool="cls", class_token=True)).init(
            jax.random.key(0), patches, rows, columns, own > 0, own
        )
