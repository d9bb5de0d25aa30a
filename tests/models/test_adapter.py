"""The adapter, against a float64 NumPy transcription of the published steps that shares nothing with it."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import AdapterConfig
from revision_jax.models.adapter import DenseAdapter, MlpAdapter, SparseAdapter, frame_positions, make_adapter

CONFIG = AdapterConfig(kind="sparse", width=16, heads=4, mlp=24, dropout=0.1)
HIDDEN = 10
FRAMES, WORDS = 9, 5


def inputs(batch: int = 2, seed: int = 0) -> list[np.ndarray]:
    """[frames, frame mask with a tail and a hole, query, query mask]."""
    random = np.random.default_rng(seed)
    frame_mask = np.ones((batch, FRAMES), bool)
    frame_mask[0, 7:] = frame_mask[-1, 2] = False
    query_mask = np.ones((batch, WORDS), bool)
    query_mask[0, 3:] = False
    return [random.normal(size=(batch, FRAMES, 16)).astype(np.float32), frame_mask, random.normal(size=(batch, WORDS, 16)).astype(np.float32), query_mask]


def params(seed: int = 0) -> dict:
    """An initialisation with noise on every array, so that biases and norms count."""
    tree = jax.jit(SparseAdapter(CONFIG, HIDDEN).init)(jax.random.key(seed), *map(jnp.asarray, inputs()))["params"]
    random = np.random.default_rng(seed + 1)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.2 * random.normal(size=x.shape), jnp.float32), tree)


@functools.partial(jax.jit, static_argnames=("config", "deterministic"))
def jitted(tree: dict, *arrays: jax.Array, config: AdapterConfig = CONFIG, deterministic: bool = True, rngs: dict | None = None):
    return SparseAdapter(config, HIDDEN).apply({"params": tree}, *arrays, deterministic=deterministic, rngs=rngs)


def apply(tree: dict, arrays: list[np.ndarray], **kw) -> tuple[np.ndarray, np.ndarray]:
    """(token, summary)."""
    token, summary = jitted(tree, *map(jnp.asarray, arrays), **kw)
    return np.asarray(token), np.asarray(summary)


@jax.jit
def gradient(tree: dict, *arrays: jax.Array) -> dict:
    return jax.grad(lambda p: jnp.sum(jitted(p, *arrays)[0] ** 2))(tree)


# ------------------------------------------------------------------------------------- the steps in plain NumPy, one example at a time


def np_norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def np_attention(p, q, k, v):
    """Heads by a loop; only valid keys are passed."""
    d = q.shape[-1]
    w, b = p["in_proj_weight"], p["in_proj_bias"]
    q, k, v = (x @ w[n * d : (n + 1) * d].T + b[n * d : (n + 1) * d] for n, x in enumerate((q, k, v)))
    size, out = d // CONFIG.heads, []
    for h in range(CONFIG.heads):
        cut = slice(h * size, (h + 1) * size)
        score = np.exp(q[:, cut] @ k[:, cut].T / math.sqrt(size))
        out.append(score / score.sum(-1, keepdims=True) @ v[:, cut])
    return np.concatenate(out, -1) @ p["out_proj"]["weight"].T + p["out_proj"]["bias"]


def np_ffn(p, x):
    return np.maximum(x @ p["linear1"]["weight"].T + p["linear1"]["bias"], 0) @ p["linear2"]["weight"].T + p["linear2"]["bias"]


def np_sparse(p, frames, query):
    """(token, summary) of one window; only valid frames and words are passed, so no mask is needed."""
    count, width = frames.shape
    position = np.zeros((count, width))
    for t in range(count):
        for j in range(0, width, 2):
            angle = (t + 1) / (count + 1e-6) * 2 * math.pi / 10000 ** (j / width)
            position[t, j], position[t, j + 1] = math.sin(angle), math.cos(angle)
    for i in range(2):
        layer = p["t2v_encoder"]["layers"][str(i)]
        y = frames + np_attention(layer["self_attn"], frames + position, query, query)
        frames = np_norm(layer["norm2"], y + np_ffn(layer, np_norm(layer["norm1"], y)))
    x = np.concatenate([p["global_rep_token"][None], frames])
    place = np.concatenate([p["global_rep_pos"][None], position])
    for i in range(2):
        layer = p["encoder"]["layers"][str(i)]
        x = np_norm(layer["norm1"], x + np_attention(layer["self_attn"], x + place, x + place, x))
        x = np_norm(layer["norm2"], x + np_ffn(layer, x))
    return x[0] @ p["mm_projector"]["weight"].T + p["mm_projector"]["bias"], x[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sparse_equals_the_transcription(seed):
    tree, arrays = params(seed), inputs(seed=seed)
    token, summary = apply(tree, arrays)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    for b in range(2):
        frames, frame_mask, query, query_mask = (x[b] for x in arrays)
        wanted = np_sparse(wide, frames[frame_mask].astype(np.float64), query[query_mask].astype(np.float64))
        np.testing.assert_allclose(token[b], wanted[0], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(summary[b], wanted[1], atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------------------- properties


def test_names_and_shapes_are_those_of_the_released_file():
    config = AdapterConfig(kind="sparse")  # as released: width 768, 8 heads, 2048
    tree = jax.eval_shape(lambda: make_adapter(config, 4096).init(
        jax.random.key(0), jnp.zeros((1, 2, 768)), jnp.ones((1, 2), bool), jnp.zeros((1, 2, 768)), jnp.ones((1, 2), bool)))["params"]
    found = {".".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    layer = {
        "self_attn.in_proj_weight": (2304, 768), "self_attn.in_proj_bias": (2304,), "self_attn.out_proj.weight": (768, 768), "self_attn.out_proj.bias": (768,),
        "linear1.weight": (2048, 768), "linear1.bias": (2048,), "linear2.weight": (768, 2048), "linear2.bias": (768,),
        "norm1.weight": (768,), "norm1.bias": (768,), "norm2.weight": (768,), "norm2.bias": (768,),
    }
    wanted = {"global_rep_token": (768,), "global_rep_pos": (768,), "mm_projector.weight": (4096, 768), "mm_projector.bias": (4096,)}
    wanted |= {f"{part}.layers.{i}.{name}": shape for part in ("t2v_encoder", "encoder") for i in range(2) for name, shape in layer.items()}
    assert found == wanted


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e4])
def test_what_lies_in_pads_does_not_matter(garbage):
    tree, arrays = params(), inputs()
    frames, frame_mask, query, query_mask = arrays
    dirty = [np.where(frame_mask[..., None], frames, garbage), frame_mask, np.where(query_mask[..., None], query, garbage), query_mask]
    np.testing.assert_array_equal(apply(tree, dirty)[0], apply(tree, arrays)[0])

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(tree, *map(jnp.asarray, dirty))))


def test_an_empty_window_or_query_gives_finite_numbers():
    tree, (frames, frame_mask, query, query_mask) = params(), inputs()
    frame_mask, query_mask = frame_mask.copy(), query_mask.copy()
    frame_mask[0] = query_mask[1] = False
    arrays = [frames, frame_mask, query, query_mask]
    assert all(np.isfinite(leaf).all() for leaf in [*apply(tree, arrays), *jax.tree.leaves(gradient(tree, *map(jnp.asarray, arrays)))])


@settings(max_examples=8, deadline=None)
@given(extra=st.sampled_from([0, 1, 6]), words=st.sampled_from([0, 3]), seed=st.integers(0, 3))  # few sizes: each is a compilation
def test_padding_on_the_right_changes_nothing(extra, words, seed):
    tree, arrays = params(), inputs(seed=seed)
    pad = lambda x, n: np.pad(x, [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2))
    longer = [pad(arrays[0], extra), pad(arrays[1], extra), pad(arrays[2], words), pad(arrays[3], words)]
    np.testing.assert_allclose(apply(tree, longer)[0], apply(tree, arrays)[0], atol=1e-5)


def test_the_order_of_frames_matters_and_that_of_windows_does_not():
    tree, arrays = params(), inputs(batch=2)
    arrays[1][:] = arrays[3][:] = True
    token = apply(tree, arrays)[0]
    assert np.abs(apply(tree, [arrays[0][:, ::-1], *arrays[1:]])[0] - token).max() > 1e-3
    np.testing.assert_allclose(apply(tree, [x[::-1] for x in arrays])[0], token[::-1], atol=1e-6)


def test_the_query_is_read():
    tree, arrays = params(), inputs()
    other = [*arrays[:2], arrays[2] + 1.0, arrays[3]]
    assert np.abs(apply(tree, other)[0] - apply(tree, arrays)[0]).max() > 1e-3


def test_summaries_are_frames_of_the_next_level():
    tree, arrays = params(), inputs(batch=6)
    summary = apply(tree, arrays)[1].reshape(2, 3, 16)
    token, higher = apply(tree, [summary, np.ones((2, 3), bool), arrays[2][:2], arrays[3][:2]])
    assert token.shape == (2, HIDDEN) and higher.shape == (2, 16) and np.isfinite(token).all()


def test_positions_count_valid_frames_only():
    mask = np.asarray([[True, False, True, True, False]])
    with_holes = np.asarray(frame_positions(jnp.asarray(mask), 8))
    np.testing.assert_allclose(with_holes[mask], np.asarray(frame_positions(jnp.ones((1, 3), bool), 8))[0], atol=1e-6)


def test_dropout_acts_in_training_only():
    tree, arrays = params(), inputs()
    train = [apply(tree, arrays, deterministic=False, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 0, 1)]
    assert np.array_equal(train[0], train[1]) and np.abs(train[0] - train[2]).max() > 1e-3
    assert np.array_equal(apply(tree, arrays, config=dataclasses.replace(CONFIG, dropout=0.0), deterministic=False)[0], apply(tree, arrays)[0])


def test_another_width_is_refused():
    frames, frame_mask, query, query_mask = inputs()
    with pytest.raises(ValueError, match=r"frames have width 15, config\.width is 16"):
        apply(params(), [frames[..., 1:], frame_mask, query[..., 1:], query_mask])


# ---------------------------------------------------------------------------------------------------------------------- dense and mlp


def test_dense_is_linear_and_mlp_is_two_layers_with_exact_gelu():
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    given_ = jnp.asarray(x)
    dense, mlp = make_adapter(AdapterConfig(kind="dense"), HIDDEN), make_adapter(AdapterConfig(kind="mlp"), HIDDEN)
    assert isinstance(dense, DenseAdapter) and isinstance(mlp, MlpAdapter) and isinstance(make_adapter(CONFIG, HIDDEN), SparseAdapter)
    p = dense.init(jax.random.key(0), given_)["params"]
    assert set(p) == {"mm_projector"}
    p["mm_projector"]["bias"] = jnp.arange(HIDDEN, dtype=jnp.float32)
    np.testing.assert_allclose(dense.apply({"params": p}, given_), x @ np.asarray(p["mm_projector"]["weight"]).T + np.arange(HIDDEN), atol=1e-5)
    p = mlp.init(jax.random.key(0), given_)["params"]
    assert set(p) == {"readout"} and set(p["readout"]) == {"0", "2"}
    inner = x.astype(np.float64) @ np.asarray(p["readout"]["0"]["weight"], np.float64).T
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    np.testing.assert_allclose(mlp.apply({"params": p}, given_), inner @ np.asarray(p["readout"]["2"]["weight"], np.float64).T, atol=1e-5)
