"""The Pallas kernel, interpreted, against plain attention: head widths, grouped queries, odd lengths, segments, gradients. And compiled for TPUs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.config import ConfigError, DecoderConfig, LoraConfig, SignalConfig, VisionConfig
from revision_jax.models.attention import attention
from revision_jax.models.decoder import Decoder, init_decoder
from revision_jax.models.segments import segment_attention
from revision_jax.models.splash import padded_width
from revision_jax.models.vision import VisionTransformer

SEGMENTS = np.array([[1] * 60 + [2] * 81 + [3] + [0] * 8, [0] * 7 + [4] * 90 + [1] * 53], np.int32)


def inputs(width: int, heads: int, groups: int, length: int = SEGMENTS.shape[1]):
    rng = np.random.default_rng(width)
    return [jnp.asarray(rng.normal(size=(2, length, count, width)), jnp.float32) for count in (heads, groups, groups)]


def value_and_grads(implementation: str, causal: bool):
    def total(q, k, v):
        out = segment_attention(q, k, v, jnp.asarray(SEGMENTS), causal=causal, implementation=implementation)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "heads", "groups", "causal"), [(64, 4, 2, True), (72, 2, 2, False), (128, 3, 1, True)])
def test_equals_plain_attention_and_its_gradients(width, heads, groups, causal):
    arrays = inputs(width, heads, groups)
    (_, out), gradients = value_and_grads("splash", causal)(*arrays)
    (_, wanted), expected = value_and_grads("xla", causal)(*arrays)
    np.testing.assert_allclose(out, wanted, atol=5e-6)
    for found, whole in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, whole, atol=2e-5)
    assert not np.asarray(out)[SEGMENTS == 0].any()
    nothing = jnp.asarray(SEGMENTS == 0)[..., None, None]
    (_, spoilt), theirs = value_and_grads("splash", causal)(*(jnp.where(nothing, 1e4, x) for x in arrays))
    np.testing.assert_array_equal(spoilt, out)
    for found, clean in zip(theirs, gradients, strict=True):
        np.testing.assert_array_equal(np.where(nothing, 0, found), np.where(nothing, 0, clean))


def test_widths():
    assert [padded_width(width) for width in (64, 72, 80, 128, 256)] == [64, 128, 128, 128, 256]


@pytest.mark.slow
def test_columns_that_are_masked_and_rows_without_any():
    q, k, v = inputs(64, 2, 2, 30)
    mask = jnp.asarray(np.stack([np.arange(30) < 17, np.zeros(30, bool)]))[:, None, None]
    run = jax.jit(attention, static_argnames="implementation")
    out = run(q, k, v, mask=mask, implementation="splash")
    np.testing.assert_allclose(out, run(q, k, v, mask=mask), atol=5e-6)
    assert not np.asarray(out[1]).any()


def test_what_the_kernel_cannot_do_is_said():
    q, k, v = inputs(64, 2, 2, 30)
    with pytest.raises(ConfigError, match="'splash' has no bias"):
        attention(q, k, v, bias=jnp.zeros((1, 1, 1, 30)), implementation="splash")
    with pytest.raises(ConfigError, match=r"not a mask of shape \(1, 1, 30, 30\); use 'xla'"):
        attention(q, k, v, mask=jnp.ones((1, 1, 30, 30), bool), implementation="splash")
    with pytest.raises(ConfigError, match=r"decoder.attention: 'splash' has no bias, which the search signal is"):
        DecoderConfig(attention="splash", signal=SignalConfig(enabled=True))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False])
def test_the_decoder_gives_the_same_hidden_states(scan):
    config = DecoderConfig(vocab=20, width=32, layers=2, heads=4, kv_heads=2, head_dim=64, mlp=24, lora=LoraConfig(rank=0), scan=scan, remat=True)
    params = init_decoder(config, jax.random.key(0))
    valid = jnp.asarray(np.stack([np.arange(20) < 17, ~np.isin(np.arange(20), (3, 4, 9))]))
    positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0)
    rows = jnp.asarray([[5, 16], [8, 19]])
    embeds = jax.random.normal(jax.random.key(1), (2, 20, 32))

    def loss(params, config):
        hidden, _ = Decoder(config).apply(params, jnp.where(valid[..., None], embeds, jnp.nan), positions, valid, rows=rows)
        return jnp.sum(jnp.sin(hidden)), hidden

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, wanted), expected = run(params, config)
    (_, found), gradients = run(params, dataclasses.replace(config, attention="splash"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), gradients["params"]["layers"], expected["params"]["layers"])


@pytest.mark.slow
def test_the_encoder_sees_the_same_pictures():
    config = VisionConfig(width=32, layers=1, heads=2, mlp=24, patch=2, grids=((2, 2),), merge=1, pool="none")
    rng = np.random.default_rng(0)
    patches = jnp.asarray(rng.normal(size=(1, 12, 12)), jnp.float32)
    places = [jnp.asarray(rng.integers(0, 5, (1, 12)), jnp.int32) for _ in range(2)]
    own = jnp.asarray([[1] * 4 + [2] * 6 + [0] * 2], jnp.int32)
    params = VisionTransformer(config).init(jax.random.key(0), patches, *places, own > 0)
    tokens = [VisionTransformer(config, attention=name).apply(params, patches, *places, own > 0, own)["tokens"] for name in ("xla", "splash")]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- compiled for TPUs

WIDTHS = {64: (4, 2), 72: (4, 4), 128: (4, 1)}  # head width -> heads, KV heads


def compile_for_tpu() -> dict:
    """Bytes of temporaries a chip of v5e:2x2, forward and backward, by head width and implementation. In a process of its own."""
    from revision_jax.planning import topologies

    topologies.prepare("v5e:2x2")
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from revision_jax.config import MeshConfig
    from revision_jax.models.context import sequence_attention
    from revision_jax.sharding.activations import on_mesh
    from revision_jax.sharding.mesh import make_mesh

    jax.config.update("jax_optimization_level", "O0")
    devices = topologies.load("v5e:2x2").devices
    told = {}
    for name, sizes in {"batch": {"data": 4}, "context": {"context": 4}}.items():
        mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}), devices)
        for width, (heads, groups) in WIDTHS.items():
            for implementation in ("xla", "splash") if name == "batch" else ("splash",):

                def total(q, k, v, segments, implementation=implementation, mesh=mesh):
                    with on_mesh(mesh):
                        out = sequence_attention(q, k, v, segments, causal=True, implementation=implementation)
                    return jnp.sum(out.astype(jnp.float32))

                lies = NamedSharding(mesh, P("data", "context"))
                array = lambda *shape, dtype=jnp.bfloat16, lies=lies: jax.ShapeDtypeStruct(shape, dtype, sharding=lies)
                arrays = (array(4, 2000, heads, width), *(array(4, 2000, groups, width) for _ in range(2)), array(4, 2000, dtype=jnp.int32))
                compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(*arrays).compile()
                text = compiled.as_text()
                told[f"{name} {width} {implementation}"] = {
                    "temporaries": compiled.memory_analysis().temp_size_in_bytes, "kernels": text.count("tpu_custom_call"),
                    "all-to-all": text.count(" all-to-all("),
                }  # fmt: skip
    return told


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs the TPU compiler: pip install "jax[tpu]" (no TPU)')
def test_the_tpu_compiler_takes_it_forward_and_backward():
    code = "import json; from tests.models.test_splash import compile_for_tpu; print(json.dumps(compile_for_tpu()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for width, (heads, _) in WIDTHS.items():
        plain, kernel, context = (told[f"{name} {width} {by}"] for name, by in (("batch", "xla"), ("batch", "splash"), ("context", "splash")))
        assert plain["kernels"] == 0 and kernel["kernels"] >= 3  # forward, gradient of q, gradient of k and v
        scores = 4 * heads * 2000 * 2000
        assert plain["temporaries"] > scores > kernel["temporaries"]
        assert context["kernels"] >= 3 and context["all-to-all"] > 0
