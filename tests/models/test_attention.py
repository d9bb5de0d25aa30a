import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.models.attention import attention, cached_attention


def reference(q, k, v, mask=None, bias=None, scale=None) -> np.ndarray:
    """Head by head and row by row in float64, with nothing clever in it."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, rows, heads, width = q.shape
    cols, groups = k.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    mask = np.ones((batch, heads, rows, cols), bool) if mask is None else np.broadcast_to(mask, (batch, heads, rows, cols))
    bias = np.zeros((batch, heads, rows, cols)) if bias is None else np.broadcast_to(bias, (batch, heads, rows, cols))
    out = np.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            group = h * groups // heads
            for s in range(rows):
                seen = mask[b, h, s]
                if not seen.any():
                    continue
                scores = k[b, seen, group] @ q[b, s, h] * scale + bias[b, h, s, seen]
                weights = np.exp(scores - scores.max())
                out[b, s, h] = weights @ v[b, seen, group] / weights.sum()
    return out


def arrays(rows, cols, heads, groups, width=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, rows, heads, width), (2, cols, groups, width), (2, cols, groups, width)]
    return [jnp.asarray(rng.normal(size=shape) * 2, jnp.float32) for shape in shapes], rng


# (rows, columns, heads, KV heads, mask, bias); the mask's axes are full (batch, heads, rows) or 1
CASES = [
    (3, 5, 4, 4, None, False),
    (3, 5, 4, 2, None, True),
    (3, 5, 6, 2, (True, True, True), True),
    (1, 5, 4, 1, (True, False, False), True),
    (3, 5, 4, 2, (False, False, True), False),
    (3, 1, 1, 1, (True, True, False), False),
]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_dense_reference(case):
    rows, cols, heads, groups, axes, biased = case
    run = jax.jit(attention)
    for seed in range(10):
        (q, k, v), rng = arrays(rows, cols, heads, groups, seed=seed)
        mask = None
        if axes is not None:
            mask = jnp.asarray(rng.random([size if full else 1 for full, size in zip(axes, (2, heads, rows), strict=True)] + [cols]) < 0.6)
        bias = jnp.asarray(rng.normal(size=(2, heads, rows, cols)) * 3, jnp.float32) if biased else None
        np.testing.assert_allclose(run(q, k, v, mask=mask, bias=bias), reference(q, k, v, mask, bias), atol=5e-6)


def test_masked_rows_are_zero_with_finite_gradients():
    (q, k, v), _ = arrays(3, 5, 4, 2)
    mask = jnp.ones((2, 1, 3, 5), bool).at[0, 0, 1].set(False)
    out = jax.jit(attention)(q, k, v, mask=mask)
    assert (out[0, 1] == 0).all() and (out[0, 0] != 0).any()
    for gradient in jax.jit(jax.grad(lambda *x: jnp.square(attention(*x, mask=mask)).sum(), argnums=(0, 1, 2)))(q, k, v):
        assert np.isfinite(gradient).all()


def test_masked_columns_change_nothing():
    (q, k, v), _ = arrays(3, 5, 4, 2)
    mask = (jnp.arange(5) < 3)[None, None, None]
    run = jax.jit(attention)
    out = run(q, k.at[:, 3:].set(1e4), v.at[:, 3:].set(-1e4), mask=mask)
    np.testing.assert_array_equal(out, run(q, k, v, mask=mask))
    np.testing.assert_allclose(out, run(q, k[:, :3], v[:, :3]), atol=1e-6)


def test_softmax_is_float32_in_low_precision():
    (q, k, v), _ = arrays(4, 64, 2, 2, width=16)
    low = [x / 2 if i < 2 else x for i, x in enumerate((q, k, v))]
    low = [x.astype(jnp.bfloat16) for x in low]
    out = jax.jit(attention)(*low)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), reference(*[x.astype(jnp.float32) for x in low]), atol=2e-2, rtol=1e-2)


def test_large_scores_do_not_overflow():
    (q, k, v), _ = arrays(2, 3, 1, 1)
    np.testing.assert_allclose(attention(q * 1e3, k * 1e3, v), reference(q * 1e3, k * 1e3, v), atol=1e-5)


def test_scale_can_be_given():
    (q, k, v), _ = arrays(2, 3, 2, 1)
    np.testing.assert_allclose(attention(q, k, v, scale=0.1), reference(q, k, v, scale=0.1), atol=1e-6)


def test_unknown_implementation_and_wrong_dtype_say_what_is_right():
    (q, k, v), _ = arrays(2, 3, 2, 1)
    with pytest.raises(ConfigError, match=r"'flash' is not available here; use one of xla, cudnn"):
        attention(q, k, v, implementation="flash")
    with pytest.raises(ConfigError, match=r"'cudnn' needs bfloat16 or float16, got float32"):
        attention(q, k, v, implementation="cudnn")


def test_rows_after_rows_give_the_same_numbers(monkeypatch):
    """A large picture is attended in blocks of rows: 7 rows in blocks of 2, then a block that is not full."""
    import importlib

    module = importlib.import_module("revision_jax.models.attention")
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 7, 4, 8)) for i in range(3))
    mask = jnp.arange(7)[None, None, None, :] < jnp.asarray([7, 4])[:, None, None, None]
    whole = module.attention(q, k, v, mask=mask)
    monkeypatch.setattr(module, "BLOCK", 2 * 4 * 7 * 2)
    blocks = jax.make_jaxpr(lambda q: module.attention(q, k, v, mask=mask))(q)
    assert "scan" in str(blocks)
    np.testing.assert_allclose(module.attention(q, k, v, mask=mask), whole, atol=1e-6)


def grouped(batch=6, rows=40, heads=4, groups=2, width=8, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(batch, rows, count, width)), jnp.float32) for count in (heads, groups, groups))
    mask = jnp.asarray(rng.random((batch, 1, rows, rows)) < 0.7)
    return q, k, v, mask, jnp.asarray(rng.normal(size=(batch, heads, rows, rows)), jnp.float32)


@pytest.mark.parametrize(("cache", "parts"), [(4 * 4 * 40 * 40, 6), (10 * 4 * 40 * 40, 3), (20 * 4 * 40 * 40, 2), (1, 6), (2**30, 1)])
def test_a_batch_in_parts_has_the_values_and_gradients_of_the_whole(cache, parts, monkeypatch):
    q, k, v, mask, bias = grouped()

    def loss(q, k, v, bias):
        return jnp.sum(jnp.sin(attention(q, k, v, mask=mask, bias=bias)))

    run = lambda: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, bias)
    monkeypatch.setattr("revision_jax.models.attention.CACHE", 2**30)
    whole = run()
    monkeypatch.setattr("revision_jax.models.attention.CACHE", cache)
    jax.clear_caches()
    text = str(jax.make_jaxpr(loss)(q, k, v, bias))
    assert (f"length={parts}" in text) if parts > 1 else ("scan" not in text)
    jax.tree.map(lambda part, all_: np.testing.assert_allclose(part, all_, atol=1e-5), run(), whole)


def test_what_is_the_same_for_every_row_of_the_batch_stays_whole(monkeypatch):
    q, k, v, _, bias = grouped()
    causal = jnp.tril(jnp.ones((40, 40), bool))[None, None]
    whole = attention(q, k, v, mask=causal, bias=bias[:1])
    monkeypatch.setattr("revision_jax.models.attention.CACHE", 1)
    np.testing.assert_allclose(attention(q, k, v, mask=causal, bias=bias[:1]), whole, atol=1e-6)
    np.testing.assert_allclose(attention(q, k, v), attention(q, k, v, mask=jnp.ones((1, 1, 1, 40), bool)), atol=1e-6)


def test_a_split_batch_in_parts_sends_nothing():
    """Eight devices, a process of its own: every part holds some rows of each device."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from revision_jax.models import attention
from revision_jax.sharding.activations import on_mesh
mesh = Mesh(np.array(jax.devices()).reshape(8), ("data",))
rng = np.random.default_rng(0)
whole = [jnp.asarray(rng.normal(size=(32, 40, heads, 8)), jnp.float32) for heads in (4, 2, 2)]
laid = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in whole]
def loss(q, k, v):
    with on_mesh(mesh):
        return jnp.sum(jnp.sin(attention.attention(q, k, v)), axis=(1, 2, 3))
expected = loss(*whole)
attention.CACHE = 4 * 4 * 40 * 40
gradients = jax.jit(lambda q, k, v: jax.vjp(loss, q, k, v)[1](jnp.ones(32)))
text = gradients.lower(*laid).compile().as_text()
assert "while" in text
found = [kind for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter") if kind in text]
assert not found, found
np.testing.assert_allclose(jax.jit(loss)(*laid), expected, atol=1e-5)
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("shared", [1, 3])
def test_columns_that_rows_share_need_no_copy(shared):
    """Two prompts of `shared` rows each: keys and values in front of a row's own, held once for a prompt, are as a copy for each row."""
    prompts, rows, heads, groups, width, first, own = 2, 2, 4, 2, 8, 7, 5
    batch, rng = prompts * shared, np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, k, v = normal(batch, rows, heads, width), normal(batch, groups, width, own), normal(batch, groups, own, width)
    before = normal(prompts, groups, width, first), normal(prompts, groups, first, width)
    mask, bias = jnp.asarray(rng.random((batch, 1, rows, first + own)) < 0.7), normal(batch, heads, rows, first + own)
    whole = [jnp.concatenate([jnp.repeat(x, shared, 0), y], axis) for x, y, axis in zip(before, (k, v), (3, 2), strict=True)]
    wanted = reference(q, jnp.moveaxis(whole[0], 3, 1), jnp.moveaxis(whole[1], 2, 1), mask, bias)
    np.testing.assert_allclose(cached_attention(q, k, v, before=before, mask=mask, bias=bias), wanted, rtol=1e-4, atol=1e-5)
