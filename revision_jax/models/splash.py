"""Attention by the Pallas kernel "splash" on TPUs: scores never leave the chip's fast memory, blocks that a causal mask empties are never computed.

What a row sees is said by segments and by causality alone: there is no dense mask and no bias. Everything is padded to what the kernel takes, the pads in
segment 0. Elsewhere than on a TPU the kernel is interpreted, block by block: slow, for tests.

Source: jax.experimental.pallas.ops.tpu.splash_attention; FlashAttention-2 (arXiv 2307.08691) for the algorithm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from revision_jax.sharding.activations import platform

LANES = 128  # what a length must be a multiple of
BLOCKS = (512, 384, 256, 128)  # rows and columns of one block: the largest that divides the padded length


def padded_width(width: int) -> int:
    """The head width that the kernel gets: 64 and multiples of 128 as they are, all else (72 of SigLIP so400m) up to the next multiple of 128."""
    return width if width == LANES // 2 else -(-width // LANES) * LANES


def splash_attention(
    q: Float[Array, "B S K d"],
    k: Float[Array, "B M G d"],
    v: Float[Array, "B M G d"],
    row_segments: Int[Array, "B S"],
    column_segments: Int[Array, "B M"],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Array, "B S K d"]:
    """softmax(q k' * scale) v over the columns of a row's own segment, those not behind it if `causal` (S = M then). Equal to `attention` with
    `segments.segment_mask`, gradients too; softmax in float32.

    A row of segment 0 gives zeros; columns of segment 0 are seen by nothing and must hold finite numbers. Grouped queries as in `attention`.
    """
    rows, width = q.shape[1], q.shape[3]
    scale = width**-0.5 if scale is None else scale
    wide = padded_width(width) - width
    line = lambda x: jnp.moveaxis(jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, wide))), 1, 2)  # [B K S d]
    whole = lambda segments: jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % LANES))).astype(jnp.int32)
    own, theirs = whole(row_segments), whole(column_segments)
    kernel = _kernel(q.shape[2], own.shape[1], theirs.shape[1], causal, platform() != "tpu")
    out = jax.vmap(kernel)(line((q * scale).astype(q.dtype)), line(k.astype(q.dtype)), line(v.astype(q.dtype)), kernels.SegmentIds(own, theirs))
    out = jnp.moveaxis(out, 1, 2)[:, :rows, :, :width].astype(q.dtype)
    return jnp.where((row_segments > 0)[..., None, None], out, 0)


def _kernel(heads: int, rows: int, columns: int, causal: bool, interpret: bool) -> kernels.SplashAttentionKernel:
    high, wide = (next(block for block in BLOCKS if length % block == 0) for length in (rows, columns))
    sizes = kernels.BlockSizes(
        block_q=high, block_kv=wide, block_kv_compute=wide, block_q_dkv=high, block_kv_dkv=wide, block_kv_dkv_compute=wide, block_q_dq=high, block_kv_dq=wide
    )
    mask = masks.CausalMask((rows, columns)) if causal else masks.FullMask((rows, columns))
    with jax.ensure_compile_time_eval():  # what the mask needs is made here, whatever is being traced around it
        return kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
