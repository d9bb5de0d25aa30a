"""The text tower of an image-text pair: CLIP's (causal, read at the end token) and SigLIP's (both ways, read at the last position).

Sources: transformers `clip` and `siglip` for the numerics.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ConfigError, TextConfig
from revision_jax.models.layers import LayerNorm, LoraLinear
from revision_jax.models.vision import Block


class TextTower(nn.Module):
    """Token ids to {"tokens": [B S D] after the last norm, "vector": [B E] projected, "phrases": [B F E], "motion": [B 2]}.

    `phrases` are F = `config.phrases` more vectors, each trained to stand for one thing that the query speaks of: of "a red ring passes behind a blue
    square" the ring and the square, of "a red ring turns green" the red and the green ring. One vector can say that both are there; only two can say
    which of them is. `motion` (zeros unless `config.motion`) is the way that the query says its subject moves, (rows, columns): up is (-1, 0), to the
    right (0, 1), nowhere (0, 0). No picture shows it; `signal.agreement` compares it with the way that a match travels.

    `mask` marks the real positions, which come first. What lies elsewhere (ids outside the vocabulary, too) changes nothing, and its tokens are
    zero. Pooling: "eos" reads the last real position, "mean" averages the real ones, "last" reads position S - 1: SigLIP is trained with its padding as
    text, so there the pads become `config.pad_id`, every position is attended to, and S must be what the weights were trained with.
    Raises ConfigError for more positions than `config.max_len`.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> dict:
        config, length = self.config, ids.shape[1]
        if length > config.max_len:
            raise ConfigError(f"text.max_len: a query of {length} positions does not fit into {config.max_len}")
        ids = jnp.where(mask, ids, config.pad_id if config.pool == "last" else 0)
        seen = jnp.ones_like(mask) if config.pool == "last" else mask
        embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab, config.width))
        position = self.param("position", nn.initializers.normal(0.01), (config.max_len, config.width))
        x = embedding[ids] + position[:length]
        columns = seen[:, None, None, :]
        if config.causal:
            columns = columns & jnp.tril(jnp.ones((length, length), bool))
        for layer in range(config.layers):
            x = Block(config.heads, config.mlp, config.activation, config.norm_eps, name=f"blocks_{layer}")(x, columns)
        x = LayerNorm(config.norm_eps, name="post_norm")(x)
        tokens = jnp.where(mask[..., None], x, 0)
        pooled = _pool(x, mask, config.pool)
        vector = LoraLinear(config.projection, use_bias=True, name="projection")(pooled)
        phrases = jnp.zeros((ids.shape[0], 0, config.projection), vector.dtype)
        if config.phrases:
            phrases = LoraLinear(config.phrases * config.projection, use_bias=True, name="phrase_projection")(pooled)
            phrases = phrases.reshape(-1, config.phrases, config.projection)
        motion = jnp.zeros((ids.shape[0], 2), vector.dtype)
        if config.motion:
            motion = LoraLinear(2, use_bias=True, name="motion_projection")(pooled)
        return {"tokens": tokens, "vector": vector, "phrases": phrases, "motion": motion}


def _pool(x: Float[Array, "B S D"], mask: Bool[Array, "B S"], pool: str) -> Float[Array, "B D"]:
    if pool == "last":
        return x[:, -1]
    if pool == "mean":
        return jnp.where(mask[..., None], x, 0).sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    last = jnp.where(mask, jnp.arange(mask.shape[1]), 0).max(axis=1)
    return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
