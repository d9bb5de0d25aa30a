"""The search signal: how well each frame matches the query, as the decoder gets to see it.

The dual encoder gives a similarity of every frame to the query for free. It enters the decoder in two ways that leave the shared prefix
(everything before the question) untouched: as channels of an additive attention bias from the question's and answer's rows to the visual
columns, and as a short summary added to those rows. See DESIGN "The search signal"; the channels `rise` and `fall` and the track are our
addition: a span is told by its two edges, and a motion by where the match moves to, neither of which one frame's similarity shows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from revision_jax.config import SignalConfig


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
    vector: Float[Array, "*#b E"],
    grid: tuple[int, int],
) -> tuple[Float[Array, "*b"], Float[Array, "*b 2"]]:
    """(probability that the frame shows it, where). Leading axes broadcast. `late` compares every token, `pooled` the frame vector."""
    if config.similarity == "late":
        logits = token_logits(params, tokens, vector)
        return jax.nn.sigmoid(frame_logits(logits)), place(logits, grid)
    level = jax.nn.sigmoid(token_logits(params, frame[..., None, :], vector)[..., 0])
    return level, jnp.full((*level.shape, 2), 0.5)


def top_mean(level: Float[Array, "*b T"], mask: Bool[Array, "*b T"], top: int) -> Float[Array, "*b"]:
    """Mean of the `top` highest levels: a window's similarity from its frames'. Fewer valid frames count as zeros."""
    return jnp.mean(jax.lax.top_k(jnp.where(mask, level, 0.0), min(top, level.shape[-1]))[0], -1)


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


def track(level: Float[Array, "*b T"], where: Float[Array, "*b T 2"], mask: Bool[Array, "*b T"]) -> Float[Array, "*b 6"]:
    """How the best match moves: displacement (row, column), spread (row, column), its share of the slots, and its spread in time.

    Weighted by the level over the run of slots around the peak, so that a second event in the window does not blur the first. The displacement is the
    least-squares slope of place over time, times the run's length: +0.4 in column means it went right by 40 % of the frame's width.
    """
    level = jnp.where(mask, level.astype(jnp.float32), 0.0)
    length = level.shape[-1]
    # A run may flicker for a slot: a slot is in it if it or a neighbour is above a third of the peak.
    padded = jnp.pad(level, [(0, 0)] * (level.ndim - 1) + [(1, 1)])
    smooth = jnp.maximum(level, jnp.maximum(padded[..., :-2], padded[..., 2:]))
    inside = smooth > jnp.max(level, -1, keepdims=True) / 3
    run = jnp.cumsum(~inside, -1)
    peak = jnp.argmax(level, -1)[..., None]
    same = inside & (run == jnp.take_along_axis(run, peak, -1))
    weight = jnp.where(same, jnp.square(level), 0.0)
    weight = weight / (jnp.sum(weight, -1, keepdims=True) + 1e-6)
    time = jnp.arange(length, dtype=jnp.float32) / length
    mean_time = jnp.sum(weight * time, -1, keepdims=True)
    offset = time - mean_time
    variance = jnp.sum(weight * jnp.square(offset), -1)
    where = where.astype(jnp.float32)
    mean_where = jnp.sum(weight[..., None] * where, -2, keepdims=True)
    shift = where - mean_where
    slope = jnp.sum(weight[..., None] * offset[..., None] * shift, -2) / (variance[..., None] + 1e-6)
    deviation = jnp.sqrt(variance + 1e-12)
    displacement = slope * (deviation * 12**0.5)[..., None]
    spread = jnp.sqrt(jnp.sum(weight[..., None] * jnp.square(shift), -2) + 1e-12)
    share = jnp.sum(same, -1) / length
    return jnp.concatenate([4 * displacement, 4 * spread, share[..., None], deviation[..., None]], -1)


def summary(config: SignalConfig, level: Float[Array, "*b T"], where: Float[Array, "*b T 2"] | None, mask: Bool[Array, "*b T"]) -> Float[Array, "*b R"]:
    """What the question's rows are told: the top similarities, and the track where the config asks for it (zeros where there is no place)."""
    level = jnp.where(mask, level.astype(jnp.float32), 0.0)
    values = jax.lax.top_k(level, min(config.top, level.shape[-1]))[0]
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, config.top - values.shape[-1])])
    if not config.track:
        return values
    path = jnp.zeros((*values.shape[:-1], 6)) if where is None else track(level, where, mask)
    return jnp.concatenate([values, path], -1)
