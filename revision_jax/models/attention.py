"""The one attention of the project, with the implementation chosen by name when a program is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from revision_jax.config import ConfigError
from revision_jax.sharding.activations import platform

IMPLEMENTATIONS = ("xla", "cudnn", "splash")
CACHE = 3 * 2**20  # bytes that a CPU core holds near it
BLOCK = 2**28  # scores held at once where every row sees the same columns (an encoder's large picture): 1 GiB of float32


def attention(
    q: Float[Array, "B S K d"],
    k: Float[Array, "B M G d"],
    v: Float[Array, "B M G d"],
    *,
    mask: Bool[Array, "#B #K #S M"] | None = None,
    bias: Float[Array, "#B #K #S #M"] | None = None,
    scale: float | None = None,
    implementation: str = "xla",
) -> Float[Array, "B S K d"]:
    """softmax(q k' * scale + bias) v over the columns where `mask` is true.

    Grouped queries: query head h reads KV head h // (K / G). Scores, bias and softmax are float32 whatever the dtype of q; the result has q's
    dtype. A row whose columns are all masked gives zeros. Masked columns of k and v must hold finite numbers (callers clear their pads).
    `scale` defaults to d ** -0.5. "cudnn" needs an NVIDIA GPU, bfloat16 or float16 and d a multiple of 8. "splash" is for TPUs (`splash.py`): masks of
    columns alone, [B 1 1 M], and no bias. Raises ConfigError for an implementation that does not exist or cannot do what is asked.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if implementation == "xla":
        return by_batch(lambda q, k, v, mask, bias: _plain(q, k, v, mask, bias, scale), k.shape[1], q, k, v, mask, bias)
    if implementation == "cudnn":
        return _cudnn(q, k, v, mask, bias, scale)
    if implementation == "splash":
        return _splash(q, k, v, mask, bias, scale)
    raise ConfigError(f"attention: {implementation!r} is not available here; use one of {', '.join(IMPLEMENTATIONS)}")


def by_batch(attend: Callable[..., Array], columns: int, q: Float[Array, "B S K d"], *rest: Array | None) -> Float[Array, "B S K d"]:
    """`attend(q, *rest)`, `by_parts` of rows whose scores (S x `columns` for each head) stay in a core's cache."""
    _, rows, heads, _ = q.shape
    return by_parts(attend, 4 * rows * heads * columns, q, *rest)


def by_parts(function: Callable[..., Any], row_bytes: int, *arrays: Array | None) -> Any:
    """`function(*arrays)`; on a CPU a few rows of the batch after the others, as many as stay in a core's cache, if each makes `row_bytes` on its way.

    What a whole batch makes goes through memory at every operation, forward and backward, which takes longer than the arithmetic. It is worked out anew in
    the backward pass, as flash attention does. The batch is the leading axis of the first array and of all that is returned; arrays of another leading axis
    are the same for all rows. Elsewhere, and where all rows fit, nothing is done.
    """
    batch = arrays[0].shape[0]
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    at_once = max(1, CACHE // row_bytes)
    share, left = divmod(batch, devices)
    if platform() != "cpu" or left or at_once >= share:
        return function(*arrays)
    at_once = devices * next(size for size in range(at_once, 0, -1) if share % size == 0)
    split = [x is not None and x.shape[0] == batch for x in arrays]

    def part(own: list[Array]) -> Any:
        own = iter(own)
        return function(*(next(own) if divided else x for x, divided in zip(arrays, split, strict=True)))

    # A device's rows lie side by side, and every part takes some of each device's: nothing is sent.
    parts = [jnp.moveaxis(x.reshape(at_once, -1, *x.shape[1:]), 1, 0) for x, divided in zip(arrays, split, strict=True) if divided]
    joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, *x.shape[2:])
    return jax.tree.map(joined, jax.lax.map(jax.checkpoint(part), parts))


def _plain(q, k, v, mask, bias, scale):
    alike = bias is None and (mask is None or mask.shape[2] == 1)
    rows = BLOCK // (q.shape[0] * q.shape[2] * k.shape[1])
    return _by_rows(q, k, v, mask, scale, max(rows, 1)) if alike and rows < q.shape[1] else _xla(q, k, v, mask, bias, scale)


def cached_attention(
    q: Float[Array, "B S K d"],
    k: Float[Array, "B G d M"],
    v: Float[Array, "B G M d"],
    *,
    before: tuple[Float[Array, "C G d P"], Float[Array, "C G P d"]] | None = None,
    mask: Bool[Array, "#B #K #S L"] | None = None,
    bias: Float[Array, "#B #K #S #L"] | None = None,
    implementation: str = "xla",
) -> Float[Array, "B S K d"]:
    """`attention` over keys and values as a cache holds them (`models/cache.py`).

    before: keys and values of P columns in front of these M, L = P + M, that B / C rows one after another share and none holds a copy of.
    """
    batch, rows, heads, width = q.shape
    groups = k.shape[1]
    if implementation != "xla":
        if before is not None:
            k, v = (jnp.concatenate([jnp.repeat(x, batch // len(x), 0), own], axis) for x, own, axis in zip(before, (k, v), (3, 2), strict=True))
        return attention(q, jnp.moveaxis(k, 3, 1), jnp.moveaxis(v, 2, 1), mask=mask, bias=bias, implementation=implementation)

    # Rows and heads of one group are the rows of one plain matrix product, which a CPU has fast code for.
    grouped = jnp.moveaxis(q.reshape(batch, rows, groups, heads // groups, width), 1, 3).reshape(batch, groups, -1, width)
    scores = jnp.einsum("bgnd,bgdm->bgnm", grouped, k, preferred_element_type=jnp.float32)
    if before is not None:
        first = jnp.einsum("bgnd,bgdm->bgnm", _joined(grouped, len(before[0])), before[0], preferred_element_type=jnp.float32)
        scores = jnp.concatenate([_parted(first, batch), scores], -1)
    weights = _softmax((scores * width**-0.5).reshape(batch, groups, heads // groups, rows, -1), mask, bias).reshape(scores.shape).astype(v.dtype)
    own = weights[..., weights.shape[-1] - k.shape[3] :]
    out = jnp.einsum("bgnm,bgmd->bgnd", own, v, preferred_element_type=jnp.float32)
    if before is not None:
        seen = _joined(weights[..., : before[0].shape[3]], len(before[0]))
        out = out + _parted(jnp.einsum("bgnm,bgmd->bgnd", seen, before[1], preferred_element_type=jnp.float32), batch)
    return jnp.moveaxis(out.reshape(batch, groups, heads // groups, rows, width), 3, 1).reshape(batch, rows, heads, width).astype(q.dtype)


def _joined(x, count):
    """[B G n w] as [C G (B/C n) w]: what the rows that share a prompt ask of it is one matrix product."""
    batch, groups, _, width = x.shape
    return jnp.moveaxis(x.reshape(count, batch // count, groups, -1, width), 1, 2).reshape(count, groups, -1, width)


def _parted(x, batch):
    """`_joined` undone."""
    count, groups, _, width = x.shape
    return jnp.moveaxis(x.reshape(count, groups, batch // count, -1, width), 2, 1).reshape(batch, groups, -1, width)


def _splash(q, k, v, mask, bias, scale):
    from revision_jax.models.splash import splash_attention  # Pallas takes half a second to import

    if bias is not None:
        raise ConfigError("attention: 'splash' has no bias, and the search signal (decoder.signal) is one; use 'xla'")
    if mask is not None and mask.shape[1:3] != (1, 1):
        raise ConfigError(f"attention: 'splash' takes masks of columns, [B 1 1 M], and segments, not a mask of shape {mask.shape}; use 'xla'")
    columns = jnp.ones((q.shape[0], k.shape[1]), jnp.int32) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (q.shape[0], k.shape[1])).astype(jnp.int32)
    rows = jnp.broadcast_to(columns.max(1, keepdims=True), q.shape[:2])  # 0, nothing, where there is no column
    return splash_attention(q, k, v, rows, columns, causal=False, scale=scale)


def _xla(q, k, v, mask, bias, scale):
    batch, rows, heads, width = q.shape
    groups = k.shape[2]
    # Heads of one group are rows of one matrix product: keys and values are never repeated in memory.
    grouped = q.reshape(batch, rows, groups, heads // groups, width)
    scores = jnp.einsum("bsgrd,bmgd->bgrsm", grouped, k, preferred_element_type=jnp.float32) * scale
    weights = _softmax(scores, mask, bias)
    out = jnp.einsum("bgrsm,bmgd->bsgrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.reshape(batch, rows, heads, width).astype(q.dtype)


def _softmax(scores, mask, bias):
    """Over the last axis of scores [B G K/G S M], float32, with mask and bias [B K S M]; zeros where a row's columns are all masked."""
    groups = scores.shape[1]
    if bias is not None:
        scores = scores + _by_group(bias.astype(jnp.float32), groups)
    if mask is not None:
        mask = _by_group(mask, groups)
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    # Without a mask the largest weight is 1; only a row with no column at all sums to 0.
    return weights / (total if mask is None else jnp.where(total > 0, total, 1.0))


def _by_rows(q, k, v, mask, scale, size):
    """The same numbers, `size` rows after `size` rows: a picture of 16,384 patches would need 17 GB of scores for 16 heads at once."""
    batch, rows, heads, width = q.shape
    count = -(-rows // size)
    blocks = jnp.pad(q, ((0, 0), (0, count * size - rows), (0, 0), (0, 0))).reshape(batch, count, size, heads, width)
    out = jax.lax.map(lambda block: _xla(block, k, v, mask, None, scale), jnp.moveaxis(blocks, 1, 0))
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * size, heads, width)[:, :rows]


def _by_group(x, groups):
    """[b K s m] -> [b G K/G s m], keeping broadcast axes of size 1."""
    batch, heads, rows, cols = x.shape
    return x[:, :, None] if heads == 1 else x.reshape(batch, groups, heads // groups, rows, cols)


def _cudnn(q, k, v, mask, bias, scale):
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ConfigError(f"attention: 'cudnn' needs bfloat16 or float16, got {q.dtype}; set the model's dtype, or use 'xla'")
    if mask is not None:
        mask = jnp.broadcast_to(mask, (q.shape[0], mask.shape[1], q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(
        q, k.astype(q.dtype), v.astype(q.dtype), bias=None if bias is None else bias.astype(q.dtype), mask=mask, scale=scale, implementation="cudnn"
    )
    if mask is not None:
        # cuDNN averages the values over a row that is masked everywhere.
        some = mask.any(axis=-1).transpose(0, 2, 1)[..., None]
        out = jnp.where(some, out, 0)
    return out
