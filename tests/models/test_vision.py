"""The vision transformer against transformers (committed arrays; live torch where it is installed), and its pads and merging."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from revision_jax.config import ConfigError, VisionConfig
from revision_jax.models.vision import VisionTransformer, frame_vector, merge_tokens, merge_valid
from tests.golden import make_vision as golden
from tests.models import torch_weights

TOLERANCE = 1e-5
BASE = {"width": 16, "layers": 2, "heads": 2, "mlp": 24, "patch": 4}
SOURCES = ["golden", pytest.param("torch", marks=pytest.mark.torch)]


@functools.cache
def jitted(module):
    """(apply, init) of a module, compiled once for all tests with the same config."""
    return jax.jit(module.apply), jax.jit(module.init)


@functools.cache
def case(source: str, name: str) -> tuple[dict, dict]:
    """(weights, the other arrays) from the committed file, or from torch with another seed."""
    if source == "torch":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    arrays = golden.load(name) if source == "golden" else golden.MAKERS[name](seed=7)
    weights = {key.removeprefix("weights/"): value.astype(np.float32) for key, value in arrays.items() if key.startswith("weights/")}
    return weights, {key: value for key, value in arrays.items() if not key.startswith("weights/")}


def assert_close(ours, theirs, tolerance: float = TOLERANCE):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, f"relative maximum error {error:.2e}"


def block_major(rows: int, cols: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
    places = [(hb * merge + mh, wb * merge + mw) for hb in range(rows // merge) for wb in range(cols // merge) for mh in range(merge) for mw in range(merge)]
    row, col = np.array(places, np.int32).T
    return row, col


def bucket(patches: np.ndarray, grids: list[tuple[int, int]], merge: int, size: int, garbage: float):
    """Images of unequal sizes in one batch of `size` patches each; the pads hold garbage, wild positions included."""
    padded = np.full((len(grids), size, patches.shape[-1]), garbage, np.float32)
    rows, cols = np.full((2, len(grids), size), 10_000, np.int32)
    valid, start = np.zeros((len(grids), size), bool), 0
    for i, (r, c) in enumerate(grids):
        padded[i, : r * c] = patches[start : start + r * c]
        rows[i, : r * c], cols[i, : r * c] = block_major(r, c, merge)
        valid[i, : r * c], start = True, start + r * c
    return tuple(jnp.asarray(x) for x in (padded, rows, cols, valid))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("garbage", [0.0, np.nan, 1e4])
def test_rope2d_equals_transformers(source, merge, garbage):
    weights, data = case(source, f"videollama3_merge{merge}")
    config = VisionConfig(**BASE, position="rope2d", grids=((8, 8),), merge=merge)
    grids = golden.GRIDS[merge]
    patches, rows, cols, valid = bucket(data["patches"], grids, merge, 28, garbage)
    out = jitted(VisionTransformer(config))[0](torch_weights.videollama3_vision(weights, config), patches, rows, cols, valid)
    real = np.asarray(valid)
    states = [out["embedded"], *out["blocks"]]
    assert len(states) == len(data["hidden"])
    for ours, theirs in zip(states, data["hidden"], strict=True):
        assert_close(np.asarray(ours)[real], theirs)
    merged = np.asarray(merge_tokens(out["tokens"], (4, 7) if merge == 1 else (2, 14), merge))
    assert_close(merged[np.asarray(merge_valid(valid, merge))], data["merged"])
    assert np.isfinite(out["tokens"]).all() and (np.asarray(out["tokens"])[~real] == 0).all()


@pytest.mark.parametrize("merge", [1, 2])
def test_bfloat16_is_as_close_to_float32_as_torch_s(merge):
    """Weights and activations: within 2 % of float32's largest value, and of torch's bfloat16."""
    weights, data = case("golden", f"videollama3_merge{merge}")
    config = VisionConfig(**BASE, position="rope2d", grids=((8, 8),), merge=merge)
    patches, rows, cols, valid = bucket(data["patches"], golden.GRIDS[merge], merge, 28, 0.0)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), torch_weights.videollama3_vision(weights, config))
    out = jitted(VisionTransformer(config))[0](params, patches.astype(jnp.bfloat16), rows, cols, valid)
    assert out["tokens"].dtype == jnp.bfloat16
    merged = np.asarray(merge_tokens(out["tokens"], (4, 7) if merge == 1 else (2, 14), merge), np.float32)[np.asarray(merge_valid(valid, merge))]
    exact, theirs = data["merged"], data["merged_bfloat16"]
    assert_close(merged, theirs, 2e-2)
    assert_close(merged, exact, min(2e-2, 1.5 * np.abs(theirs - exact).max() / np.abs(exact).max()))


def learned_inputs(images: np.ndarray) -> tuple[jax.Array, ...]:
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=golden.PATCH, q=golden.PATCH)
    rows, cols = (np.tile(x, (len(images), 1)) for x in block_major(*golden.CLIP_GRID, 1))
    return tuple(jnp.asarray(x) for x in (patches, rows, cols, np.ones(rows.shape, bool)))


@pytest.mark.parametrize("source", SOURCES)
def test_clip_equals_transformers(source):
    weights, data = case(source, "clip_vision")
    config = VisionConfig(
        **BASE, position="learned", grids=(golden.CLIP_GRID,), merge=1, pool="cls", class_token=True, pre_norm=True, activation="quick_gelu", norm_eps=1e-5
    )
    params = torch_weights.clip_vision(weights, config)
    out = jitted(VisionTransformer(config))[0](params, *learned_inputs(data["images"]))
    for ours, theirs in zip([out["embedded"], *out["blocks"]], data["hidden"], strict=True):
        assert_close(ours, theirs)
    assert_close(out["frame"], data["frame"])
    last = data["last"][:, 1:]  # transformers normalises the class token alone
    wide = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5)
    norm = params["params"]["post_norm"]
    assert_close(out["tokens"], wide * norm["scale"] + norm["bias"])


@pytest.mark.parametrize("source", SOURCES)
def test_siglip_equals_transformers(source):
    weights, data = case(source, "siglip_vision")
    config = VisionConfig(**BASE, position="learned", grids=(golden.CLIP_GRID,), merge=1, pool="attention")
    out = jitted(VisionTransformer(config))[0](torch_weights.siglip_vision(weights, config), *learned_inputs(data["images"]))
    for ours, theirs in zip([out["embedded"], *out["blocks"]], data["hidden"], strict=True):
        assert_close(ours, theirs)
    assert_close(out["tokens"], data["last"])
    assert_close(out["frame"], data["frame"])


@pytest.mark.parametrize(
    "choice",
    [
        {"position": "rope2d", "pool": "mean"},
        {"position": "rope2d", "pool": "cls", "class_token": True},
        {"position": "learned", "pool": "attention"},
        {"position": "learned", "pool": "cls", "class_token": True, "pre_norm": True},
    ],
)
def test_pads_change_nothing(choice):
    config = VisionConfig(**{**BASE, "layers": 1}, grids=((4, 6),), merge=2, **choice)
    apply, init = jitted(VisionTransformer(config))
    patches = np.random.default_rng(0).normal(size=(2 * 16, 48)).astype(np.float32)
    exact = bucket(patches, [(4, 4), (4, 4)], 2, 16, 0.0)
    variables = init(jax.random.key(0), *exact)
    reference = apply(variables, *exact)
    for garbage in (np.nan, 1e4):
        out = apply(variables, *bucket(patches, [(4, 4), (4, 4)], 2, 24, garbage))
        np.testing.assert_allclose(out["tokens"][:, :16], reference["tokens"], atol=2e-6)
        np.testing.assert_allclose(out["frame"], reference["frame"], atol=2e-6)


def test_pads_leave_gradients_finite():
    module = VisionTransformer(VisionConfig(**{**BASE, "layers": 1}, grids=((4, 6),), merge=2))
    inputs = bucket(np.random.default_rng(0).normal(size=(16, 48)).astype(np.float32), [(4, 4)], 2, 24, np.nan)
    variables = jitted(module)[1](jax.random.key(0), *inputs)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(module.apply(v, *inputs)["tokens"]).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_frames_never_see_each_other():
    config = VisionConfig(**BASE, grids=((4, 4),), merge=2)
    patches = np.random.default_rng(0).normal(size=(32, 48)).astype(np.float32)
    inputs = bucket(patches, [(4, 4), (4, 4)], 2, 16, 0.0)
    apply, init = jitted(VisionTransformer(config))
    variables = init(jax.random.key(0), *inputs)
    both = apply(variables, *inputs)["tokens"]
    changed = apply(variables, inputs[0].at[1].add(1.0), *inputs[1:])["tokens"]
    assert (both[0] == changed[0]).all() and (both[1] != changed[1]).any()


def test_position_matters_and_only_differences_do():
    """RoPE is relative: a shifted grid gives the same tokens, a transposed one does not."""
    config = VisionConfig(**BASE, grids=((4, 4),), merge=2)
    patches, rows, cols, valid = bucket(np.random.default_rng(0).normal(size=(16, 48)).astype(np.float32), [(4, 4)], 2, 16, 0.0)
    apply, init = jitted(VisionTransformer(config))
    variables = init(jax.random.key(0), patches, rows, cols, valid)
    tokens = apply(variables, patches, rows, cols, valid)["tokens"]
    np.testing.assert_allclose(apply(variables, patches, rows + 3, cols + 5, valid)["tokens"], tokens, atol=2e-5)
    assert np.abs(apply(variables, patches, cols, rows, valid)["tokens"] - tokens).max() > 1e-3


@pytest.mark.parametrize("merge", [1, 2, 3, 4, 5])
def test_merge_is_bilinear_shrinking(merge):
    """Against a bilinear resize written out: sample at (i + 0.5) m - 0.5 along each axis."""
    rows, cols = 2 * merge, 3 * merge
    grid = np.random.default_rng(merge).normal(size=(rows, cols, 5)).astype(np.float32)

    def shrink(x):  # along the first axis
        at = (np.arange(len(x) // merge) + 0.5) * merge - 0.5
        low = np.floor(at).astype(int)
        share = (at - low)[:, None, None]
        return x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share

    expected = shrink(shrink(grid).transpose(1, 0, 2)).transpose(1, 0, 2).reshape(-1, 5)
    row, col = block_major(rows, cols, merge)
    np.testing.assert_allclose(merge_tokens(jnp.asarray(grid[row, col])[None], (rows, cols), merge)[0], expected, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("merge", [2, 3, 4])
def test_merge_equals_torch_interpolate(merge):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(2 * merge, 3 * merge, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(grid).permute(2, 0, 1)[None], size=(2, 3), mode="bilinear")[0].permute(1, 2, 0).reshape(-1, 5)
    row, col = block_major(*grid.shape[:2], merge)
    np.testing.assert_allclose(merge_tokens(jnp.asarray(grid[row, col])[None], grid.shape[:2], merge)[0], theirs.numpy(), atol=1e-6)


def test_frame_vector_is_the_mean_of_valid_tokens():
    tokens = jnp.asarray([[[1.0], [3.0], [jnp.nan]], [[5.0], [5.0], [5.0]]])
    valid = jnp.asarray([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(frame_vector(tokens, valid, "mean"), [[2.0], [0.0]])


def test_errors_name_the_field():
    tokens = jnp.zeros((1, 6, 4))
    with pytest.raises(ConfigError, match=r"vision\.merge: 6 patches"):
        merge_tokens(tokens, (2, 3), 2)
    with pytest.raises(ConfigError, match=r"vision\.pool: 'cls'"):
        frame_vector(tokens, jnp.ones((1, 6), bool), "cls")
