import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from revision_jax import paths
from revision_jax.data.pipeline import stack
from revision_jax.sharding.mesh import make_mesh
from revision_jax.sharding.rules import Rules, tree_shardings
from revision_jax.training.optimizer import make_optimizer
from revision_jax.training.state import begin_stage, split
from revision_jax.training.step import make_train_step, optimizer_shardings, stage_key
from tests.training.toy_task import ToyExamples, made_state, toy_axes, toy_config, toy_loss, toy_state


def setup(optimizer="adamw", name="fine"):
    config = toy_config()
    stage = dataclasses.replace(next(stage for stage in config.train.stages if stage.name == name), optimizer=optimizer)
    mesh, rules = make_mesh(config.mesh, jax.devices()[:1]), Rules()
    state = made_state()
    shardings = split(tree_shardings(state, mesh, rules, toy_axes), stage.train)
    trainable, frozen = jax.device_put(split(begin_stage(state, stage), stage.train), shardings)
    transform = make_optimizer(stage, toy_axes)
    opt_shardings = optimizer_shardings(transform, trainable, shardings[0], mesh)
    step = make_train_step(config, stage, toy_loss(stage), transform, mesh, rules, *shardings, opt_shardings)
    return step, trainable, frozen, jax.jit(transform.init, out_shardings=opt_shardings)(trainable)


def batch_of(step):
    return stack([ToyExamples(0, 0).example(8 * step + row) for row in range(8)])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls_with_one_compilation_and_the_frozen_part_untouched(optimizer):
    step, trainable, frozen, opt_state = setup(optimizer)
    before = {name: np.array(leaf) for name, leaf in paths.flatten(frozen).items()}
    losses = []
    for number in range(10):
        trainable, opt_state, metrics = step(trainable, frozen, opt_state, batch_of(0), np.int32(number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert step._cache_size() == 1
    for name, leaf in paths.flatten(frozen).items():
        np.testing.assert_array_equal(np.array(leaf), before[name])


def test_optimizer_state_exists_for_the_trained_part_alone():
    _, trainable, _, opt_state = setup()
    shapes = {leaf.shape for leaf in jax.tree.leaves(opt_state)}
    assert shapes == {leaf.shape for leaf in jax.tree.leaves(trainable)} | {()}


def test_trained_part_and_optimizer_state_are_donated():
    step, trainable, frozen, opt_state = setup()
    step(trainable, frozen, opt_state, batch_of(0), np.int32(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))


def test_randomness_depends_on_seed_stage_and_step_alone():
    first, again, other = (jax.random.key_data(stage_key(*of)) for of in ((3, "1a"), (3, "1a"), (3, "1b")))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    step, trainable, frozen, opt_state = setup()
    losses = []
    for number in (4, 4, 5):
        copies = jax.tree.map(jnp.copy, (trainable, opt_state))
        losses.append(float(step(copies[0], frozen, copies[1], batch_of(0), np.int32(number))[2]["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_metrics_are_float32_scalars():
    step, trainable, frozen, opt_state = setup()
    metrics = step(trainable, frozen, opt_state, batch_of(0), np.int32(0))[2]
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "index_sum"}
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def test_moments_lie_as_their_weights_do():
    config = toy_config()
    stage = dataclasses.replace(config.train.stages[0], optimizer="muon")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = jax.eval_shape(toy_state)
    trainable, _ = split(state, stage.train)
    shardings, _ = split(tree_shardings(state, mesh, Rules(), toy_axes), stage.train)
    told = {jax.tree_util.keystr(path): sharding.spec for path, sharding in
            jax.tree_util.tree_flatten_with_path(optimizer_shardings(make_optimizer(stage, toy_axes), trainable, shardings, mesh))[0]}
    moments = [spec for name, spec in told.items() if "'blocks'" in name]
    assert moments and all(spec == shardings["params"]["blocks"]["kernel"].spec for spec in moments)
    assert any(spec == P() for spec in told.values())  # counters
