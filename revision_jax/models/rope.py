"""Rotary position embedding, 1-D (decoders) and 2-D (VideoLLaMA3's vision encoder), as angles plus one rotation.

Angles are computed once per call of a model and shared by its layers. Layout: "rotate half", i.e. channel j of the first half of a head is
paired with channel j of the second half, as LLaMA, Qwen2 and VideoLLaMA3 do (Su et al. 2021, arXiv 2104.09864).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int


def inverse_frequencies(dim: int, theta: float) -> Float32[np.ndarray, " half"]:
    """theta^(-2j/dim) for j = 0 .. dim/2-1, in float32 throughout: at position 10,000 another rounding would already be seen in the angle."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)


def angles_1d(positions: Int[Array, "B S"], dim: int, theta: float) -> Float32[Array, "B S half"]:
    """Angles in radians of 1-D RoPE for heads of `dim` channels; the last axis has dim/2 values. Always float32."""
    return positions.astype(jnp.float32)[..., None] * inverse_frequencies(dim, theta)


def angles_2d(rows: Int[Array, "B P"], cols: Int[Array, "B P"], dim: int, theta: float) -> Float32[Array, "B P half"]:
    """Angles in radians of VideoLLaMA3's 2-D RoPE for heads of `dim` channels: dim/4 values of the row, then dim/4 of the column.

    Each axis uses the frequencies of a head of dim/2 channels. There is no time axis. Always float32.
    """
    frequencies = inverse_frequencies(dim // 2, theta)
    row = rows.astype(jnp.float32)[..., None] * frequencies
    col = cols.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([row, col], axis=-1)


def rotate(x: Float[Array, "B S K d"], angles: Float[Array, "B S half"]) -> Float[Array, "B S K d"]:
    """Turns each channel pair (j, j + d/2) of every head by its angle. Computed in float32, returned in the dtype of `x`."""
    cos = jnp.cos(angles)[:, :, None, :]
    sin = jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
