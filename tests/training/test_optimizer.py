import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from revision_jax import paths
from revision_jax.config import StageConfig
from revision_jax.training.optimizer import decays, make_optimizer, muon_axes, warmup_cosine
from tests.training.toy_task import toy_axes, toy_state


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    rates = np.asarray([warmup_cosine(2.0, 100, 0.1)(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2, rtol=1e-6)
    assert rates.argmax() in (9, 10) and rates[100] == pytest.approx(0, abs=1e-6) and rates[99] > 0
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[9 + 91 // 2] == pytest.approx(1.0, abs=0.05)
    assert float(warmup_cosine(1.0, 1, 0.03)(0)) == 1.0  # a stage of one step still learns


def test_vectors_take_no_decay_even_when_stacked():
    state = toy_state()
    state["params"]["norms"] = {"scale": jnp.ones((2, 4))}
    axes = lambda name, shape: ("layers", "norm") if name == "params/norms/scale" else toy_axes(name, shape)
    mask = paths.flatten(decays(state, axes))
    assert {name for name, decayed in mask.items() if not decayed} == {"params/first/bias", "params/scale", "params/norms/scale"}


def test_weight_decay_shrinks_only_what_it_should():
    stage = StageConfig(name="s", task="pretrain", steps=10, learning_rate=0.1, weight_decay=0.5, warmup=0.0, clip=0.0)
    state = jax.tree.map(jnp.ones_like, toy_state())
    optimizer = make_optimizer(stage, toy_axes)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, state), optimizer.init(state), state)
    moved = paths.flatten(optax.apply_updates(state, updates))
    assert float(moved["params/first/bias"][0]) == 1.0 and float(moved["params/scale"]) == 1.0
    assert float(moved["params/first/kernel"][0, 0]) == pytest.approx(0.95)


def test_clipping_bounds_the_update():
    stage = StageConfig(name="s", task="pretrain", steps=10, clip=1.0)
    state = toy_state()
    big = jax.tree.map(lambda x: 1e3 * jnp.ones_like(x), state)
    for clip, same in ((1.0, True), (0.0, False)):
        optimizer = make_optimizer(dataclasses.replace(stage, clip=clip), toy_axes)
        moments = [optimizer.update(scaled, optimizer.init(state), state)[1] for scaled in (big, jax.tree.map(lambda x: 2 * x, big))]
        close = all(np.allclose(a, b, rtol=1e-5) for a, b in zip(*map(jax.tree.leaves, moments), strict=True))
        assert close == same


def test_muon_takes_matrices_and_leaves_embeddings_and_vectors():
    axes = muon_axes(toy_state(), toy_axes)
    assert axes["params"]["last"]["kernel"] is None  # has the vocabulary axis
    assert axes["params"]["first"]["bias"] is None and axes["params"]["scale"] is None
    assert axes["params"]["blocks"]["kernel"] == optax.contrib.MuonDimensionNumbers(1, 2)  # not the stacked layers


def test_muon_orthogonalises_each_layer():
    stage = StageConfig(name="s", task="pretrain", steps=10, learning_rate=1.0, warmup=0.0, clip=0.0, optimizer="muon")
    state = toy_state()
    optimizer = make_optimizer(stage, toy_axes)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), state)
    updates, _ = optimizer.update(gradients, optimizer.init(state), state)
    for layer in np.asarray(updates["params"]["blocks"]["kernel"]):
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.max() / values.min() < 2.0  # a random 32 x 16 matrix has about 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
