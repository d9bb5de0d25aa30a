"""The search signal: how well each frame matches the query, as the decoder gets to see it.

The dual encoder gives a similarity of every frame to the query for free, and where the text tower has phrases, to each thing that the query speaks of.
It enters the decoder in three ways that leave the shared prefix (everything before the question) untouched: as channels of an additive attention bias
from the question's and answer's rows to the visual columns; as a short summary added to those rows; and as cues, one more token for each slot behind the
question. See DESIGN "The search signal"; the channels `rise` and `fall` and the cues are our addition (docs/architecture.md says why).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from revision_jax.config import SignalConfig


class Match(NamedTuple):
    """How slots (frames or windows) match a query: similarity to each of its F vectors, where in the frame, and the way its subject is said to move."""

    level: Float[Array, "*b T F"]
    where: Float[Array, "*b T F 2"] | None = None  # None for windows of frames, which have no place
    motion: Float[Array, "*b 2"] | None = None  # None where the text tower does not say it


def unit(x: Array) -> Array:
    """Unit length along the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def token_logits(params: dict, tokens: Float[Array, "*#b N E"], vector: Float[Array, "*#b E"]) -> Float[Array, "*b N"]:
    """Log-odds that a token shows what the query says: scale x cosine + bias, float32 (SigLIP's form, one token at a time).

    params: {"scale": (), "bias": ()}, the scale kept as its logarithm.
    """
    cosine = jnp.einsum("...ne,...e->...n", unit(tokens), unit(vector), preferred_element_type=jnp.float32)
    return jnp.exp(params["scale"]) * cosine + params["bias"]


def frame_logits(logits: Float[Array, "*b N"]) -> Float[Array, "*b"]:
    """Log-odds that any token of a frame shows it: a smooth maximum (log-sum-exp), so that every good token learns."""
    return jax.nn.logsumexp(logits, -1)


def place(logits: Float[Array, "*b N"], grid: tuple[int, int]) -> Float[Array, "*b 2"]:
    """Where in the frame the match lies: (row, column) in [0, 1], the softmax-weighted centre of the tokens of a row-major `grid`."""
    rows, columns = grid
    weights = jax.nn.softmax(logits, -1)
    centre = jnp.stack(jnp.meshgrid((jnp.arange(rows) + 0.5) / rows, (jnp.arange(columns) + 0.5) / columns, indexing="ij"), -1).reshape(-1, 2)
    return jnp.einsum("...n,nc->...c", weights, centre, precision="highest")


def similarity(
    params: dict,
    config: SignalConfig,
    frame: Float[Array, "*#b E"],
    tokens: Float[Array, "*#b N E"] | None,
    vectors: Float[Array, "*#b F E"],
    grid: tuple[int, int],
) -> tuple[Float[Array, "*b F"], Float[Array, "*b F 2"]]:
    """For each of F query vectors (probability that the frame shows it, where). Leading axes broadcast. `late` compares every token, `pooled` the
    frame vector."""
    if config.similarity == "late":
        logits = token_logits(params, tokens[..., None, :, :], vectors)
        return jax.nn.sigmoid(frame_logits(logits)), place(logits, grid)
    level = jax.nn.sigmoid(token_logits(params, frame[..., None, None, :], vectors)[..., 0])
    return level, jnp.full((*level.shape, 2), 0.5)


def top_mean(level: Float[Array, "*b T F"], mask: Bool[Array, "*b T"], top: int) -> Float[Array, "*b F"]:
    """Mean of the `top` highest levels of each query vector: a window's similarity from its frames'. Fewer valid frames count as zeros."""
    level = jnp.moveaxis(jnp.where(mask[..., None], level, 0.0), -1, -2)
    return jnp.mean(jax.lax.top_k(level, min(top, level.shape[-1]))[0], -1)


def channels(config: SignalConfig, level: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b T C"]:
    """The bias channels of each slot, float32, zero where masked.

    level: the similarity; square: its square; rise: how much it exceeds the two slots before; fall: the two slots after. Outside counts as
    zero. Example: level 0 0 1 1 1 0 has rise 0 0 1 .5 0 -1 and fall 0 -.5... high exactly at the last 1.
    """
    level = jnp.where(mask, level.astype(jnp.float32), 0.0)
    pad = [(0, 0)] * (level.ndim - 1) + [(2, 2)]
    padded = jnp.pad(level, pad)
    before = 0.5 * (padded[..., 1:-3] + padded[..., :-4])
    after = 0.5 * (padded[..., 3:-1] + padded[..., 4:])
    made = {"level": level, "square": jnp.square(level), "rise": level - before, "fall": level - after}
    return jnp.where(mask[..., None], jnp.stack([made[name] for name in config.channels], -1), 0.0)


def summary(config: SignalConfig, level: Float[Array, "*b T"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b R"]:
    """What the question's rows are told: the top similarities."""
    level = jnp.where(mask, level.astype(jnp.float32), 0.0)
    values = jax.lax.top_k(level, min(config.top, level.shape[-1]))[0]
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, config.top - values.shape[-1])])


# --------------------------------------------------------------------------------------------------------------------------- cues


def cue_size(config: SignalConfig, vectors: int, motion: bool = False) -> int:
    """Features of a cue where the query has `vectors` vectors; `motion`: the text tower says which way its subject moves."""
    return 4 * vectors + (3 if motion else 2) * len(config.scales)


def travel(level: Float[Array, "*b T"], where: Float[Array, "*b T 2"], reach: int) -> Float[Array, "*b T 2"]:
    """How far a match moves around each slot, (rows, columns) in shares of the frame: the least-squares slope of its place over the slots at most `reach`
    away, times how long it is seen there. +0.4 in column means that it went right by 40 % of the frame's width. Slots weigh as their level squared.
    """
    length = level.shape[-1]
    slots = jnp.arange(length)
    near = (jnp.abs(slots[:, None] - slots[None]) <= reach).astype(jnp.float32)
    weight = jnp.square(level)[..., None]
    time = slots[:, None] / length
    around = lambda x: jnp.einsum("st,...tc->...sc", near, weight * x, precision="highest")
    total = around(jnp.ones_like(time)) + 1e-6
    mean_time, mean_where = around(time) / total, around(where) / total
    variance = jnp.maximum(around(time * time) / total - jnp.square(mean_time), 0.0)
    covariance = around(time * where) / total - mean_time * mean_where
    return covariance / (variance + 1e-6) * jnp.sqrt(12.0 * variance + 1e-12)


def agreement(travels: Float[Array, "*b T 2"], motion: Float[Array, "*b 2"]) -> Float[Array, "*b T"]:
    """How well the way that a match travels agrees with the way the query says: their inner product. Above zero along it, below against it, zero across it
    and where the query says none. A decoder would have to learn this product of question and film; given, it reads it off."""
    return jnp.einsum("...tc,...c->...t", travels, motion.astype(jnp.float32), precision="highest")


def of_subject(x: Float[Array, "*b F n"]) -> Float[Array, "*b n"]:
    """Of what is known of each query vector's match that of the query's subject: the first phrase's, of a tower without phrases the query's."""
    return x[..., min(1, x.shape[-2] - 1), :]


def cue_features(config: SignalConfig, match: Match, mask: Bool[Array, "*b T"]) -> Float[Array, "*b T R"]:
    """What a cue says of its slot, float32, zero where masked: of every query vector the similarity, a tenth of its log-odds, and the match's
    place; how far the first phrase's match (of a tower without phrases, the query's) travels, over `config.scales`; and where the query's motion is
    known, how well each of these agrees with it.
    """
    level, where = match.level, match.where
    level = jnp.where(mask[..., None], level.astype(jnp.float32), 0.0)
    clipped = jnp.clip(level, 1e-5, 1 - 1e-5)
    odds = (jnp.log(clipped) - jnp.log1p(-clipped)) / 10.0
    where = jnp.full((*level.shape, 2), 0.5) if where is None else jnp.where(mask[..., None, None], where.astype(jnp.float32), 0.5)
    seen = of_subject(level[..., None])[..., 0]
    moves = [4.0 * seen[..., None] * travel(seen, of_subject(where), reach) for reach in config.scales]
    agreed = [] if match.motion is None else [2.0 * agreement(move, match.motion)[..., None] for move in moves]
    place = (2.0 * level[..., None] * (where - 0.5)).reshape(*level.shape[:-1], -1)
    return jnp.where(mask[..., None], jnp.concatenate([level, odds, place, *moves, *agreed], -1), 0.0)


def init_cues(config: SignalConfig, vectors: int, width: int, key: Array, motion: bool = False) -> dict:
    """Weights of `cue_tokens`, float32: {"fc1": {"kernel" [R H], "bias"}, "fc2": {"kernel" [H H], "bias"}}."""
    first, second = jax.random.split(key)
    size = cue_size(config, vectors, motion)
    return {
        "fc1": {"kernel": jax.random.normal(first, (size, width)) * size**-0.5, "bias": jnp.zeros(width)},
        "fc2": {"kernel": jax.random.normal(second, (width, width)) * width**-1.0, "bias": jnp.zeros(width)},
    }


def cue_tokens(params: dict, features: Float[Array, "*b T R"]) -> Float[Array, "*b T H"]:
    """A perceptron from what a cue says to the decoder's width."""
    hidden = jax.nn.gelu(features @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
