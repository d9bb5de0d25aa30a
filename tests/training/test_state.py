import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax import paths
from revision_jax.config import ConfigError, StageConfig
from revision_jax.training.state import begin_stage, copied, merge, split
from tests.training.toy_task import made_state


def test_split_and_merge():
    state = made_state()
    trainable, frozen = split(state, ("lora/fine", "params/last"))
    assert sorted(paths.flatten(trainable)) == ["lora/fine/a", "lora/fine/b", "params/last/kernel"]
    assert set(paths.flatten(trainable)).isdisjoint(paths.flatten(frozen))
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="trained and frozen at once: lora/fine/a"):
        merge(trainable, state)


def test_a_prefix_without_leaves_is_named_with_what_there_is():
    with pytest.raises(ConfigError, match=r"stages\.x\.train: nothing of the model lies under 'lora/dense'; there are .*lora/fine"):
        split(made_state(), ("lora/dense",), "stages.x.train")


def test_copies_are_equal_and_arrays_of_their_own():
    state = made_state()
    made = copied(state, (("lora/coarse", "lora/fine"),))
    for part in ("a", "b"):
        np.testing.assert_array_equal(made["lora/fine"][part], state["lora/coarse"][part])
        assert made["lora/fine"][part].unsafe_buffer_pointer() != state["lora/coarse"][part].unsafe_buffer_pointer()
    assert not np.array_equal(state["lora/fine"]["a"], state["lora/coarse"]["a"])


def test_copies_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="nothing of the model lies under 'lora/none'"):
        copied(made_state(), (("lora/none", "lora/fine"),))
    with pytest.raises(ConfigError, match="nothing of the model lies under 'lora/none'"):
        copied(made_state(), (("lora/fine", "lora/none"),))
    state = made_state()
    state["lora/coarse"]["a"] = jnp.zeros((3, 3))
    with pytest.raises(ConfigError, match="differs at lora/fine/a"):
        copied(state, (("lora/coarse", "lora/fine"),))


def test_what_is_trained_becomes_float32_and_the_rest_keeps_its_type():
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), made_state())
    begun = begin_stage(state, dataclasses.replace(StageConfig(task="pretrain"), train=("lora/fine",)))
    assert begun["lora/fine"]["a"].dtype == jnp.float32 and begun["lora/coarse"]["a"].dtype == jnp.bfloat16
