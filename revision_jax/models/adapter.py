"""The hierarchical adapter: from aligned image-text features to decoder tokens.

Kinds, chosen by `AdapterConfig.kind`:

- dense, `DenseAdapter`: one linear layer, a token a frame (ReVisionLLM's dense level; VTimeLLM's projector).
- sparse, `SparseAdapter`: a window and the question become one token (ReVisionLLM's sparse level).
- temporal, `SparseAdapter` too: the same encoder, read at the frames (ReVisionLLM's "temporal" form).
- mlp, `MlpAdapter`: Linear, GELU, Linear (VideoLLaMA3's projector).

ReVisionLLM's "alternate" form is no kind of its own: its even training steps are those of a sparse level, its odd ones those of a dense level, each with
the same LayerNorm behind it (`AdapterConfig.norm`).

Parameter names *and* layouts are those of the released checkpoints, so that reading one is a rename: a linear layer is `weight` [out, in] and
`bias` [out], attention is `in_proj_weight` [3 D, D] (q, k, v from top to bottom), `in_proj_bias`, `out_proj`. Lists become dicts keyed by "0", "1", ...

Sources: ReVisionLLM (arXiv 2411.14901) with its released adapter, DETR (arXiv 2005.12872) for the sine positions, VideoLLaMA3 (arXiv 2501.13106).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from revision_jax.config import AdapterConfig, ConfigError
from revision_jax.models.attention import by_parts

NORM_EPS = 1e-5
POSITION_EPS = 1e-6
TEMPERATURE = 10000.0

Drop = Callable[[Array], Array]


def frame_positions(mask: Bool[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """DETR's sine embedding of each frame's number among the valid frames, float32.

    The k-th valid frame (from 1) of n has the phase `k / (n + 1e-6) * 2 pi`, so the whole window spans one turn whatever its length; feature j is
    its sine (even j) or cosine (odd j) at `10000^(-2 (j // 2) / width)`. Values at invalid frames are finite and mean nothing.
    """
    number = jnp.cumsum(mask.astype(jnp.float32), axis=1)
    phase = number / (number[:, -1:] + POSITION_EPS) * (2.0 * math.pi)
    feature = jnp.arange(width)
    angles = phase[..., None] / TEMPERATURE ** (2.0 * (feature // 2) / width)
    return jnp.where(feature % 2 == 0, jnp.sin(angles), jnp.cos(angles))


# ------------------------------------------------------------------------------------------------------------- parameters and layers


def _linear_init(key: PRNGKeyArray, width_in: int, width_out: int) -> dict:
    limit = math.sqrt(6.0 / (width_in + width_out))  # Xavier uniform, as DETR
    return {"weight": jax.random.uniform(key, (width_out, width_in), minval=-limit, maxval=limit), "bias": jnp.zeros((width_out,))}


def _norm_init(width: int) -> dict:
    return {"weight": jnp.ones((width,)), "bias": jnp.zeros((width,))}


def _layers_init(key: PRNGKeyArray, count: int, width: int, mlp: int) -> dict:
    """`count` transformer layers as the released file nests them: {"layers": {"0": {...}, ...}}."""

    def layer(key: PRNGKeyArray) -> dict:
        project, out, first, second = jax.random.split(key, 4)
        limit = math.sqrt(6.0 / (4 * width))
        return {
            "self_attn": {
                "in_proj_weight": jax.random.uniform(project, (3 * width, width), minval=-limit, maxval=limit),
                "in_proj_bias": jnp.zeros((3 * width,)),
                "out_proj": _linear_init(out, width, width),
            },
            "linear1": _linear_init(first, width, mlp),
            "linear2": _linear_init(second, mlp, width),
            "norm1": _norm_init(width),
            "norm2": _norm_init(width),
        }

    return {"layers": {str(i): layer(jax.random.fold_in(key, i)) for i in range(count)}}


def _linear(params: dict, x: Float[Array, "... D"]) -> Float[Array, "... O"]:
    return x @ params["weight"].astype(x.dtype).T + params["bias"].astype(x.dtype)


def _norm(params: dict, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """LayerNorm with float32 statistics; returns x's dtype."""
    y = x.astype(jnp.float32)
    centred = y - y.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPS)
    return (y * params["weight"] + params["bias"]).astype(x.dtype)


def _attend(
    params: dict, q: Float[Array, "B S D"], k: Float[Array, "B M D"], v: Float[Array, "B M D"], mask: Bool[Array, "B M"], heads: int, drop: Drop
) -> Float[Array, "B S D"]:
    """Multi-head attention of `q` over the valid keys; a row without any valid key reads nothing (zero before the output projection).

    Written out, not `attention.attention`, because DETR drops attention weights in training.
    """
    width = q.shape[-1]
    weight, bias = params["in_proj_weight"].astype(q.dtype), params["in_proj_bias"].astype(q.dtype)

    def project(x: Array, part: int) -> Array:
        rows = slice(part * width, (part + 1) * width)
        return (x @ weight[rows].T + bias[rows]).reshape(*x.shape[:2], heads, width // heads)

    logits = jnp.einsum("bskd,bmkd->bksm", project(q, 0), project(k, 1), preferred_element_type=jnp.float32) / math.sqrt(width // heads)
    keep = mask[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(keep, logits, jnp.finfo(jnp.float32).min), axis=-1)
    weights = drop(jnp.where(keep, weights, 0.0)).astype(q.dtype)
    read = jnp.einsum("bksm,bmkd->bskd", weights, project(v, 2)).reshape(q.shape)
    return _linear(params["out_proj"], read)


def _feed_forward(params: dict, x: Float[Array, "B S D"], drop: Drop) -> Float[Array, "B S D"]:
    return _linear(params["linear2"], drop(jax.nn.relu(_linear(params["linear1"], x))))


def text_to_video_layer(
    params: dict,
    frames: Float[Array, "B T D"],
    position: Float[Array, "B T D"],
    query: Float[Array, "B S D"],
    query_mask: Bool[Array, "B S"],
    heads: int,
    drop: Drop,
) -> Float[Array, "B T D"]:
    """Frames read the question (text has zero position). `norm1` sits on a side path in front of the feed-forward alone: the attention residual
    goes unnormalised into the second residual. So were the released weights trained."""
    y = frames + drop(_attend(params["self_attn"], frames + position, query, query, query_mask, heads, drop))
    z = _feed_forward(params, _norm(params["norm1"], y), drop)
    return _norm(params["norm2"], y + drop(z))


def self_layer(
    params: dict, x: Float[Array, "B M D"], position: Float[Array, "B M D"], mask: Bool[Array, "B M"], heads: int, drop: Drop, rows: int | None = None
) -> Float[Array, "B S D"]:
    """Post-norm encoder layer; the position is added to queries and keys, not to values. rows: only the first so many are wanted, and worked out."""
    placed = x + position
    x = _norm(params["norm1"], x[:, :rows] + drop(_attend(params["self_attn"], placed[:, :rows], placed, x, mask, heads, drop)))
    return _norm(params["norm2"], x + drop(_feed_forward(params, x, drop)))


# --------------------------------------------------------------------------------------------------------------------------- modules


class DenseAdapter(nn.Module):
    """Linear: [... D] -> [... H], and a LayerNorm where `config.norm` asks for one."""

    config: AdapterConfig
    width_out: int

    @nn.compact
    def __call__(self, frames: Float[Array, "*B D"], *, deterministic: bool = True) -> Float[Array, "*B H"]:
        tokens = _linear(self.param("mm_projector", _linear_init, frames.shape[-1], self.width_out), frames)
        return _last_norm(self, self.config, tokens)


class MlpAdapter(nn.Module):
    """Linear(D, H), exact (erf) GELU, Linear(H, H): [... D] -> [... H]."""

    width_out: int

    @nn.compact
    def __call__(self, frames: Float[Array, "*B D"], *, deterministic: bool = True) -> Float[Array, "*B H"]:
        readout = self.param(
            "readout", lambda key: {"0": _linear_init(jax.random.fold_in(key, 0), frames.shape[-1], self.width_out),
                                    "2": _linear_init(jax.random.fold_in(key, 2), self.width_out, self.width_out)})
        return _linear(readout["2"], jax.nn.gelu(_linear(readout["0"], frames), approximate=False))


def _last_norm(module: nn.Module, config: AdapterConfig, tokens: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """The LayerNorm of the "alternate" form. The released evaluation skips it: so can we, without losing its weights."""
    if config.norm == "none":
        return tokens
    norm = module.param("alternate_layer_norm", lambda key: _norm_init(tokens.shape[-1]))
    return _norm(norm, tokens) if config.norm == "applied" else tokens


class SparseAdapter(nn.Module):
    """A window and a question become one token, or (kind "temporal") a token a frame.

    Frames read the question (`t2v_encoder`), a learned global token reads the frames (`encoder`), and its output, the summary, is projected to the
    decoder's width. A sequence of summaries of this adapter is itself a valid `frames`: that is how levels nest.

    With `config.inner` the encoder has the decoder's width: frames and question are projected before it, and nothing follows it.
    """

    config: AdapterConfig
    width_out: int

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "B T D"],
        frame_mask: Bool[Array, "B T"],
        query: Float[Array, "B S D"],
        query_mask: Bool[Array, "B S"],
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B *T H"], Float[Array, "B I"]]:
        """frames, query: features of width D; masks True where real.

        Returns (token [B H], or [B T H] if temporal; summary [B I]: the global token before the last linear, I = `config.encoder`).
        Needs the rng stream "dropout" when not deterministic and `config.dropout` > 0. Raises ValueError if a width is not `config.width`.
        """
        c, width = self.config, self.config.encoder
        for name, array in (("frames", frames), ("query", query)):
            if array.shape[-1] != c.width:
                raise ValueError(f"adapter: {name} have width {array.shape[-1]}, config.width is {c.width}")
        token = self.param("global_rep_token", nn.initializers.normal(1.0), (width,))
        place = self.param("global_rep_pos", nn.initializers.normal(1.0), (width,))
        reader = self.param("t2v_encoder", _layers_init, c.text_layers, width, c.mlp) if c.text_layers else {}
        encoder = self.param("encoder", _layers_init, c.self_layers, width, c.mlp)
        projector = self.param("mm_projector", _linear_init, c.width, self.width_out)

        def drop(x: Array) -> Array:
            if deterministic or c.dropout == 0.0:
                return x
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - c.dropout, x.shape)
            return jnp.where(keep, x / (1.0 - c.dropout), 0.0)

        frames = jnp.where(frame_mask[..., None], frames, 0.0)  # a weight of zero does not silence a NaN: pads are cleared, not only masked
        query = jnp.where(query_mask[..., None], query, 0.0)
        if c.inner:
            frames, query = _linear(projector, frames), _linear(self.param("text_mm_projector", _linear_init, c.width, width), query)

        def encode(frames: Array, frame_mask: Array, query: Array, query_mask: Array) -> Array:
            position = frame_positions(frame_mask, width).astype(frames.dtype)
            for i in range(c.text_layers):
                frames = text_to_video_layer(reader["layers"][str(i)], frames, position, query, query_mask, c.heads, drop)

            def in_front(vector: Array, rest: Array) -> Array:
                return jnp.concatenate([jnp.broadcast_to(vector.astype(rest.dtype), (len(rest), 1, width)), rest], axis=1)

            x, position = in_front(token, frames), in_front(place, position)
            mask = jnp.concatenate([jnp.ones((len(x), 1), bool), frame_mask], axis=1)
            for i in range(c.self_layers):
                last = i == c.self_layers - 1 and c.kind == "sparse"  # of which nothing but the global token is read
                x = self_layer(encoder["layers"][str(i)], x, position, mask, c.heads, drop, rows=1 if last else None)
            return x

        if deterministic or c.dropout == 0.0:
            length = frames.shape[1] + 1
            x = by_parts(encode, 4 * length * (c.heads * length + c.mlp + 4 * width), frames, frame_mask, query, query_mask)
        else:
            x = encode(frames, frame_mask, query, query_mask)
        summary = x[:, 0]
        read = x[:, 1:] if c.kind == "temporal" else summary
        return _last_norm(self, c, read if c.inner else _linear(projector, read)), summary


def make_adapter(config: AdapterConfig, width_out: int) -> DenseAdapter | SparseAdapter | MlpAdapter:
    """The adapter module of one level; `width_out` is the decoder's H. Call it as `.init(key, ...)["params"]` and `.apply({"params": ...}, ...)`.

    Raises ConfigError for an encoder as wide as neither its input nor the decoder.
    """
    if config.inner not in (0, width_out):
        raise ConfigError(f"adapter.inner: must be 0 or the decoder's width {width_out}, is {config.inner}")
    if config.reads_query:
        return SparseAdapter(config, width_out)
    return DenseAdapter(config, width_out) if config.kind == "dense" else MlpAdapter(width_out)
