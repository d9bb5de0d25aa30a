"""int8 weights against the weights that they stand for: rounding, products, gradients, the decoder's ways of running, training, files."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from revision_jax import checkpoint, paths
from revision_jax.config import ConfigError, ExperimentConfig, StageConfig, TrainConfig
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.models.cache import init_cache
from revision_jax.models.decoder import merge_lora, split_layers
from revision_jax.models.layers import LoraLinear
from revision_jax.models.quantize import dequantized, is_quantized, quantize_layers, quantize_state, quantized, scale_name
from revision_jax.models.revision import first_state
from revision_jax.sharding.mesh import make_mesh
from revision_jax.sharding.rules import tree_shardings
from revision_jax.sharding.strategies import rules_named
from revision_jax.training.checkpoints import Checkpoints
from revision_jax.training.state import begin_stage, split
from revision_jax.training.task import begin_from
from tests import tiny
from tests.models.test_decoder import BATCH, CONFIG, LENGTH, call, inputs, variables


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([(3, 5), (2, 4, 6)]), st.floats(1e-6, 1e6))
def test_at_most_half_a_scale_off(seed, shape, size):
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(size)
    weight[..., 1] = 0
    kernel, scale = quantized(jnp.asarray(weight))
    assert kernel.dtype == jnp.int8 and scale.shape == (*shape[:-2], shape[-1]) and int(jnp.abs(kernel).max()) == 127
    off = np.abs(np.asarray(dequantized(kernel, scale)) - weight)
    assert (off <= 0.5001 * np.asarray(scale)[..., None, :]).all() and not off[..., 1].any()


def test_a_product_is_that_of_the_weight_that_the_integers_stand_for():
    x = jax.random.normal(jax.random.key(0), (3, 8))
    layer = LoraLinear(5, use_bias=True)
    params = layer.init(jax.random.key(1), x)["params"]
    kernel, scale = quantized(params["kernel"])
    small = {**params, "kernel": kernel, "scale": scale, "bias": jnp.arange(5.0)}
    large = {"kernel": dequantized(kernel, scale), "bias": jnp.arange(5.0)}
    total = lambda params: jax.value_and_grad(lambda x: jnp.sum(jnp.sin(layer.apply({"params": params}, x))))(x)
    for found, wanted in zip(total(small), total(large), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert layer.apply({"params": small}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def both() -> tuple[dict, dict]:
    """The decoder's variables with int8 matrices, and with the floats that these stand for."""
    small = {**variables(), "params": quantize_layers(variables()["params"])}
    leaves = paths.flatten(small["params"])
    large = {name: dequantized(leaf, leaves[name.removesuffix("kernel") + "scale"]) if leaf.dtype == jnp.int8 else leaf for name, leaf in leaves.items()}
    large = {name: leaf for name, leaf in large.items() if not (name.endswith("/scale") and name.removesuffix("scale") + "kernel" in leaves)}
    return small, {**small, "params": paths.unflatten(large)}


@pytest.mark.parametrize("way", ["scanned", "unrolled", "cached"])
def test_the_decoder_runs_every_way(way):
    small, large = both()
    config = dataclasses.replace(CONFIG, scan=way == "scanned")
    more = {"cache": init_cache(CONFIG, BATCH, LENGTH), "start": 0} if way == "cached" else {}
    apart = {**small, "params": split_layers(small["params"])} if way == "cached" else small
    found, wanted = (call(config, tree, **inputs(), **more)[0] for tree in (apart, large))
    valid = np.asarray(inputs()["valid"])[..., None]
    np.testing.assert_allclose(np.where(valid, found, 0), np.where(valid, wanted, 0), atol=2e-4)
    plain = call(config, variables(), **inputs())[0]
    assert 1e-4 < np.abs(np.where(valid, plain - wanted, 0)).max() < 0.3  # int8 is not the same model, but close


def test_gradients_of_a_lora_go_through():
    def gradient(tree):
        valid = inputs()["valid"][..., None]
        loss = lambda lora: jnp.sum(jnp.where(valid, jnp.sin(call(CONFIG, {**tree, "lora": lora}, **inputs())[0]), 0.0))
        return jax.jit(jax.grad(loss))(tree["lora"])

    found, wanted = map(gradient, both())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3), found, wanted)
    assert all(np.abs(leaf).max() > 0 for name, leaf in paths.flatten(found).items() if name.endswith("/b"))


def test_only_matrices_of_layers_and_each_once():
    state = quantize_state(tiny.state())
    kernels = [name for name, leaf in paths.flatten(state).items() if leaf.dtype == jnp.int8]
    assert len(kernels) == 7 and all(name.startswith("params/decoder/layers/") and scale_name(name) in paths.flatten(state) for name in kernels)
    again = quantize_state(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert scale_name("params/vision/blocks_0/mlp/fc1/kernel") == scale_name("params/decoder/norm/scale") == ""
    with pytest.raises(ValueError, match="the base is int8"):
        merge_lora(tiny.config().decoder, state["params"]["decoder"], state["lora/dense"])


# -------------------------------------------------------------------------------------------------------------- training, files


def trained() -> ExperimentConfig:
    stages = (StageConfig(name="1a", level="dense", train=("lora/dense",)), StageConfig(name="2", level="sparse", train=("adapter/sparse",)))
    return dataclasses.replace(tiny.config(), train=TrainConfig(base_dtype="int8", stages=stages))


def test_a_stage_that_trains_the_decoder_is_refused():
    for part in ("params", "params/decoder", "params/decoder/head"):
        with pytest.raises(ConfigError, match=r"train.base_dtype: 'int8' is for a decoder that is not trained, and stage all trains it"):
            TrainConfig(base_dtype="int8", stages=(StageConfig(name="all", train=(part,)),))


def test_scales_lie_where_the_outputs_of_their_matrices_do():
    config = trained()
    abstract = jax.eval_shape(lambda: first_state(config, jax.random.key(0)))
    lies = paths.flatten(tree_shardings(abstract, make_mesh(config.mesh, jax.devices()[:1]), rules_named("fsdp_tensor")))
    assert lies["params/decoder/layers/attention/k/scale"].spec == lies["params/decoder/layers/mlp/up/scale"].spec == P(None, "tensor")
    assert lies["params/decoder/layers/mlp/down/scale"].spec == P(None, None)


def test_stages_leave_the_integers_alone_and_checkpoints_hold_them(tmp_path):
    config = trained()
    state = jax.jit(lambda: first_state(config, jax.random.key(0)))()
    first = begin_stage(begin_stage(state, config.train.stages[0], "int8"), config.train.stages[1], "int8")
    found, began = paths.flatten(state), paths.flatten(first)
    for name, leaf in began.items():
        if leaf.dtype == jnp.int8:
            np.testing.assert_array_equal(leaf, found[name])
            np.testing.assert_array_equal(began[scale_name(name)], found[scale_name(name)])
    assert is_quantized(first["params"]["decoder"]["layers"]["mlp"]["up"]) and first["params"]["decoder"]["layers"]["mlp"]["up"]["scale"].dtype == jnp.float32
    assert first["params"]["decoder"]["embed"]["embedding"].dtype == jnp.bfloat16
    trainable, frozen = split(first, config.train.stages[0].train)
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save("1a", 0, trainable, {"count": jnp.zeros(())}, frozen)
        read = checkpoints.restore("1a", 0, trainable, frozen, None).frozen
    jax.tree.map(np.testing.assert_array_equal, read, frozen)
    assert is_quantized(read["params"]["decoder"]["layers"]["mlp"]["up"])


def test_exported_as_the_weights_it_stands_for_and_begun_from_again(tmp_path):
    build_word_tokenizer(["a red ring"], numbers=20, vocab_size=300).save(tmp_path)
    config = trained()
    state = quantize_state(tiny.state(3))
    folder = checkpoint.export(state, config, tmp_path / "tokenizer.json", tmp_path / "exported", dtype="float32")
    stored = paths.flatten(checkpoint.load(folder).state)
    assert set(stored) == set(paths.flatten(tiny.state(3)))
    leaves = paths.flatten(state)
    up = "params/decoder/layers/mlp/up/kernel"
    np.testing.assert_allclose(stored[up], dequantized(np.asarray(leaves[up]), np.asarray(leaves[scale_name(up)])), rtol=1e-6)
    abstract = jax.eval_shape(lambda: first_state(config, jax.random.key(0)))
    shardings = tree_shardings(abstract, make_mesh(config.mesh, jax.devices()[:1]), rules_named("default"))
    begun = paths.flatten(begin_from(config, folder, tmp_path / "work")(shardings))
    shapes = lambda leaves: {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    assert shapes(begun) == shapes(paths.flatten(abstract))
    assert np.abs(np.asarray(begun[up], np.int32) - np.asarray(leaves[up], np.int32)).max() <= 1  # read as bfloat16, and rounded again
