"""The vision transformer: VideoLLaMA3's encoder (2-D RoPE), CLIP's and SigLIP's (learned positions), by config alone.

Everything has a fixed shape: P patches a frame, of which `valid` ones are real, each with its row and column. Frames are the batch axis and never
see each other. Patches come block-major (the m x m patches of a merged token side by side), flattened channel-first (3, p, p).

Sources: transformers `video_llama_3`, `clip`, `siglip` for the numerics; arXiv 2501.13106 for the encoder.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ConfigError, VisionConfig
from revision_jax.models.attention import attention
from revision_jax.models.context import sequence_attention
from revision_jax.models.layers import LayerNorm, LoraLinear, Mlp
from revision_jax.models.remat import rematerialised
from revision_jax.models.rope import angles_2d, rotate


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases (`q`, `k`, `v`, `out`); turns q and k by `angles` where they are given. attention, rules: of `segments`."""

    heads: int
    attention: str = "xla"
    rules: str = "default"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B P D"], mask: Bool[Array, "#B #K #P P"] | None, angles: Float[Array, "B P half"] | None = None,
        segments: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B P D"]:
        width = x.shape[-1]
        q, k, v = (LoraLinear(width, use_bias=True, name=name)(x).reshape(*x.shape[:2], self.heads, -1) for name in ("q", "k", "v"))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if segments is None:
            seen = attention(q, k, v, mask=mask)
        else:
            about = {"implementation": self.attention, "rules": self.rules, "batch": "frame", "position": False}
            seen = sequence_attention(q, k, v, segments, causal=False, **about)
        return LoraLinear(width, use_bias=True, name="out")(seen.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm1(x)), then + mlp(norm2(x)). Shared with the text tower."""

    heads: int
    mlp: int
    activation: str
    eps: float
    attention: str = "xla"
    rules: str = "default"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B P D"], mask: Bool[Array, "#B #K #P P"] | None, angles: Float[Array, "B P half"] | None = None,
        segments: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B P D"]:
        x = x + SelfAttention(self.heads, self.attention, self.rules, name="attention")(LayerNorm(self.eps, name="norm1")(x), mask, angles, segments)
        return x + Mlp(self.mlp, self.activation, name="mlp")(LayerNorm(self.eps, name="norm2")(x))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: one learned probe attends to the tokens, then a residual MLP."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], valid: Bool[Array, "B P"]) -> Float[Array, "B D"]:
        config, (batch, _, width) = self.config, x.shape
        probe = jnp.broadcast_to(self.param("probe", nn.initializers.normal(width**-0.5), (width,)).astype(x.dtype), (batch, 1, width))
        q, k, v = (
            LoraLinear(width, use_bias=True, name=name)(source).reshape(batch, -1, config.heads, config.head_dim)
            for name, source in (("q", probe), ("k", x), ("v", x))
        )
        pooled = attention(q, k, v, mask=valid[:, None, None, :]).reshape(batch, width)
        pooled = LoraLinear(width, use_bias=True, name="out")(pooled)
        return pooled + Mlp(config.mlp, config.activation, name="mlp")(LayerNorm(config.norm_eps, name="norm")(pooled))


class VisionTransformer(nn.Module):
    """Patches to tokens.

    Returns a dict: "embedded" [B P' D] what enters the first block, "blocks" a list of [B P' D] (P' counts the class token, if there is one, in
    front), "tokens" [B P D] after the last norm, zero where not valid, and "frame" [B D], the frame vector as `config.pool` makes it. Nothing is
    projected. What lies in invalid patches (even NaN) changes nothing.

    Learned positions are a table over the rows and columns of the largest grid, in row-major order; a class token has its own.

    segments: where several pictures share a line of P patches, 1, 2, .. for each, 0 for padding; they do not see each other, and "frame" means nothing.
    remat: what the backward pass computes again of each block (`remat.py`).
    attention: what computes it where there are segments, "xla" or "splash" (`models/attention.py`); rules: the mesh's.
    """

    config: VisionConfig
    remat: str = "none"
    attention: str = "xla"
    rules: str = "default"

    @nn.compact
    def __call__(
        self, patches: Float[Array, "B P C"], rows: Int[Array, "B P"], cols: Int[Array, "B P"], valid: Bool[Array, "B P"],
        segments: Int[Array, "B P"] | None = None,
    ) -> dict:
        config = self.config
        if segments is not None and (config.class_token or config.pool == "attention"):
            raise ConfigError("vision: pictures that share a line of patches (segments) can have neither a class token nor a pooling head")
        patches = jnp.where(valid[..., None], patches, 0)
        x = LoraLinear(config.width, use_bias=True, name="patch_embed")(patches)
        angles = None
        if config.position == "rope2d":
            angles = angles_2d(rows, cols, config.head_dim, config.rope_theta)
        else:
            grid_rows, grid_cols = (max(sizes) for sizes in zip(*config.grids, strict=True))
            table = self.param("position", nn.initializers.normal(0.02), (grid_rows * grid_cols, config.width))
            x = x + jnp.where(valid[..., None], table[jnp.where(valid, rows * grid_cols + cols, 0)].astype(x.dtype), 0)
        seen = valid
        if config.class_token:
            token = self.param("class_token", nn.initializers.normal(0.02), (config.width,))
            if config.position == "learned":
                token = token + self.param("class_position", nn.initializers.normal(0.02), (config.width,))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, config.width)), x], axis=1)
            seen = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
            if angles is not None:
                angles = jnp.pad(angles, ((0, 0), (1, 0), (0, 0)))  # the class token has no place: angle 0
        if config.pre_norm:
            x = LayerNorm(config.norm_eps, name="pre_norm")(x)
        embedded, blocks = x, []
        block = rematerialised(nn.remat, Block, self.remat)
        mask = seen[:, None, None, :] if segments is None else None
        for layer in range(config.layers):
            about = (config.heads, config.mlp, config.activation, config.norm_eps, self.attention, self.rules)
            x = block(*about, name=f"blocks_{layer}")(x, mask, angles, segments)
            blocks.append(x)
        x = LayerNorm(config.norm_eps, name="post_norm")(x)
        tokens = jnp.where(valid[..., None], x[:, 1:] if config.class_token else x, 0)
        if config.pool == "cls":
            frame = x[:, 0]
        elif config.pool == "attention":
            frame = AttentionPool(config, name="pool")(tokens, valid)
        else:
            frame = frame_vector(tokens, valid)
        return {"embedded": embedded, "blocks": blocks, "tokens": tokens, "frame": frame}


def frame_vector(tokens: Float[Array, "B P D"], valid: Bool[Array, "B P"], pool: str = "mean") -> Float[Array, "B D"]:
    """The mean over a frame's valid tokens (zero for a frame without any); for `pool` "none" too, where no frame vector was ever trained.

    The other pools need parameters or the class token: the encoder's "frame" holds them. Raises ConfigError for those.
    """
    if pool not in ("mean", "none"):
        raise ConfigError(f"vision.pool: {pool!r} is not a function of the tokens; read the encoder's output 'frame'")
    weight = valid.astype(tokens.dtype)[..., None]
    return jnp.where(valid[..., None], tokens, 0).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)


def merge_tokens(tokens: Float[Array, "B P D"], grid: tuple[int, int], merge: int) -> Float[Array, "B N D"]:
    """Joins the m x m patches of each block into one token: N = P / m^2, in row-major order of the (rows / m, columns / m) grid.

    This is VideoLLaMA3's bilinear shrinking (align_corners=False, no antialias), which for a whole factor m reads the centre of a block only: the
    centre patch for odd m, the mean of the centre 2 x 2 for even m. Raises ConfigError where the (rows, columns) grid does not fit.
    """
    rows, cols = grid
    if rows % merge or cols % merge or rows * cols != tokens.shape[1]:
        raise ConfigError(f"vision.merge: {tokens.shape[1]} patches are not a grid of {rows} x {cols} in blocks of {merge} x {merge}")
    if merge == 1:
        return tokens
    blocks = tokens.reshape(tokens.shape[0], -1, merge, merge, tokens.shape[-1])
    centre = slice((merge - 1) // 2, merge // 2 + 1)
    return blocks[:, :, centre, centre].astype(jnp.float32).mean(axis=(2, 3)).astype(tokens.dtype)


def merge_valid(valid: Bool[Array, "B P"], merge: int) -> Bool[Array, "B N"]:
    """Which merged tokens are real: those of blocks whose patches all are."""
    return valid.reshape(valid.shape[0], -1, merge * merge).all(axis=-1)
