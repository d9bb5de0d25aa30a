"""Attention among slots of the same segment: packed rows, in which neighbours know nothing of each other.

Conversations packed into one row of the decoder (causal), pictures packed into one slot of the encoder (not causal). Segment 0 is padding: it sees nothing
and is seen by nothing. A long row is gone through some rows of scores at a time, which are made again in the backward pass: a sequence of 16,384 would
need 13 GB of scores for 12 heads at once, in each layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from revision_jax.models.attention import BLOCK, attention


def segment_mask(
    rows: Int[Array, "B S"], columns: Int[Array, "B M"], causal: bool, first: Int[Array, ""] | int = 0
) -> Bool[Array, "B 1 S M"]:
    """Which columns each row sees. `first`: number of the first row among the columns, for causal masks."""
    mask = (rows[:, :, None] == columns[:, None, :]) & (rows[:, :, None] > 0)
    if causal:
        mask &= jnp.arange(columns.shape[1]) <= (first + jnp.arange(rows.shape[1]))[:, None]
    return mask[:, None]


def segment_attention(
    q: Float[Array, "B S K d"],
    k: Float[Array, "B S G d"],
    v: Float[Array, "B S G d"],
    segments: Int[Array, "B S"],
    *,
    causal: bool,
    implementation: str = "xla",
) -> Float[Array, "B S K d"]:
    """`attention` inside each segment; rows of segment 0 give zeros. Masked columns of k and v must hold finite numbers.

    BLOCK bounds the scores that are held at once; "cudnn" takes the mask as a whole, "splash" needs none.
    """
    if implementation == "splash":
        from revision_jax.models.splash import splash_attention

        return splash_attention(q, k, v, segments, segments, causal=causal)
    batch, length, heads, width = q.shape
    size = max(1, min(length, BLOCK // (batch * heads * length)))
    if size == length or implementation != "xla":
        return attention(q, k, v, mask=segment_mask(segments, segments, causal), implementation=implementation)
    count = -(-length // size)

    @jax.checkpoint
    def part(asked: tuple[Array, Array, Array]) -> Array:
        rows, own, first = asked
        return attention(rows, k, v, mask=segment_mask(own, segments, causal, first))

    padded = count * size - length
    parts = lambda x: jnp.moveaxis(jnp.pad(x, ((0, 0), (0, padded)) + ((0, 0),) * (x.ndim - 2)).reshape(batch, count, size, *x.shape[2:]), 1, 0)
    out = jax.lax.map(part, (parts(q), parts(segments), jnp.arange(count) * size))
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, width)[:, :length]
