import dataclasses

import jax
import numpy as np
import optax
import pytest

from revision_jax import paths
from revision_jax.config import ConfigError, StageConfig
from revision_jax.training.optimizer import decays, make_optimizer, muon_axes, warmup_cosine
from tests.training.toy_task import toy_axes, toy_state


def ones():
    """The toy's state on the host, all ones."""
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(toy_state))


def first_update(stage, gradients, state):
    """(updates, optimizer state) of the first step."""
    optimizer = make_optimizer(stage, toy_axes)
    return jax.jit(lambda gradients, state: optimizer.update(gradients, optimizer.init(state), state))(gradients, state)


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    rates = np.asarray(jax.jit(warmup_cosine(2.0, 100, 0.1))(np.arange(101)))
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2, rtol=1e-6)
    assert rates.argmax() in (9, 10) and rates[100] == pytest.approx(0, abs=1e-6) and rates[99] > 0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[9 + 91 // 2] == pytest.approx(1.0, abs=0.05)
    assert float(warmup_cosine(1.0, 1, 0.03)(0)) == 1.0  # a stage of one step still learns


def test_vectors_take_no_decay_even_when_stacked():
    state = ones()
    state["params"]["norms"] = {"scale": np.ones((2, 4))}
    mask = paths.flatten(decays(state, lambda name, shape: ("layers", "norm") if name == "params/norms/scale" else toy_axes(name, shape)))
    assert {name for name, decayed in mask.items() if not decayed} == {"params/first/bias", "params/scale", "params/norms/scale"}


def test_weight_decay_shrinks_only_what_it_should():
    stage = StageConfig(name="s", task="pretrain", steps=10, learning_rate=0.1, weight_decay=0.5, warmup=0.0, clip=0.0)
    state = ones()
    moved = paths.flatten(optax.apply_updates(state, first_update(stage, jax.tree.map(np.zeros_like, state), state)[0]))
    assert float(moved["params/first/bias"][0]) == 1.0 and float(moved["params/scale"]) == 1.0
    assert float(moved["params/first/kernel"][0, 0]) == pytest.approx(0.95)


def test_clipping_bounds_the_update():
    stage = StageConfig(name="s", task="pretrain", steps=10, clip=1.0)
    gradients = jax.tree.map(lambda x: 1e3 * x, ones())
    for clip, same in ((1.0, True), (0.0, False)):
        moments = [first_update(dataclasses.replace(stage, clip=clip), jax.tree.map(lambda x, by=by: by * x, gradients), ones())[1] for by in (1, 2)]
        close = all(np.allclose(a, b, rtol=1e-5) for a, b in zip(*map(jax.tree.leaves, moments), strict=True))
        assert close == same


def test_muon_takes_matrices_and_leaves_embeddings_and_vectors():
    axes = muon_axes(ones(), toy_axes)
    assert axes["params"]["last"]["kernel"] is None  # has the vocabulary axis
    assert axes["params"]["first"]["bias"] is None and axes["params"]["scale"] is None
    assert axes["params"]["blocks"]["kernel"] == optax.contrib.MuonDimensionNumbers(1, 2)  # not the stacked layers


def test_muon_orthogonalises_each_layer():
    stage = StageConfig(name="s", task="pretrain", steps=10, learning_rate=1.0, warmup=0.0, clip=0.0, optimizer="muon")
    random = np.random.default_rng(0)
    updates, _ = first_update(stage, jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), ones()), ones())
    for layer in np.asarray(updates["params"]["blocks"]["kernel"]):
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.max() / values.min() < 2.0  # a random 32 x 16 matrix has about 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_part_with_its_own_rate_moves_as_if_the_whole_stage_had_it(optimizer):
    random = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), ones())
    common = {"name": "s", "task": "pretrain", "steps": 10, "optimizer": optimizer, "train": ("params", "lora/fine"), "weight_decay": 0.1}
    rates = (("params/first", 3e-3), ("params/first/bias", 5e-4), ("lora/fine", 2e-3))
    mixed = StageConfig(**common, learning_rate=1e-2, rates=rates)
    moved = paths.flatten(first_update(mixed, gradients, ones())[0])
    for name, leaf in moved.items():
        rate = 5e-4 if name == "params/first/bias" else 3e-3 if name.startswith("params/first/") else 2e-3 if name.startswith("lora/fine") else 1e-2
        alone = paths.flatten(first_update(StageConfig(**common, learning_rate=rate), gradients, ones())[0])[name]
        np.testing.assert_allclose(leaf, alone, rtol=1e-5)


def test_rates_are_of_what_is_trained():
    with pytest.raises(ConfigError, match=r"stages\.s\.rates: 'params/vision' is not under what is trained \(params/decoder\)"):
        StageConfig(name="s", train=("params/decoder",), rates=(("params/vision", 1e-3),))
    with pytest.raises(ConfigError, match="rate of params must be above 0"):
        StageConfig(name="s", train=("params",), rates=(("params", 0.0),))
