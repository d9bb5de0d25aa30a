"""A batch in parts gives the loss, the metrics and the gradients of the batch as a whole, whatever each part has to count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from revision_jax import paths
from revision_jax.config import ConfigError, RowConfig, StageConfig
from revision_jax.data.pipeline import stack
from revision_jax.sharding.mesh import AXES
from revision_jax.sharding.rules import Rules, check_batch
from revision_jax.training import losses
from revision_jax.training.conversation_loss import conversation_loss
from revision_jax.training.means import Mean, numbers
from revision_jax.training.state import split
from revision_jax.training.step import gradients_of
from tests import conversing, tiny
from tests.training.test_conversation_loss import STAGE, row, sample
from tests.training.test_losses import CONFIG, CONSTANTS, features, question, text


def dense_batch(rng, rows):
    """Answers of unequal length and weight; one row has none."""
    ids, mask = text(rng, rows, 6)
    mask = mask.at[1].set(False).at[2, 2:].set(False)
    frames = {"frames": features(rng, rows, 12), "tokens": features(rng, rows, 12, 4), "frame_mask": jnp.ones((rows, 12), bool).at[0, 9:].set(False)}
    return {**question(rng, rows), **frames, "answer_ids": ids, "answer_mask": mask, "weight": jnp.asarray(rng.uniform(0.2, 3, rows), jnp.float32)}


def close(found, wanted, rtol=2e-5):
    found, wanted = paths.flatten(found), paths.flatten(wanted)
    largest = max(float(jnp.abs(leaf).max()) for leaf in wanted.values())
    assert set(found) == set(wanted) and largest > 0
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=rtol * largest, err_msg=name)


def both(loss, state, prefixes, batch, parts):
    """(gradients, metrics) of a batch as a whole and in parts."""
    trainable, frozen = split(state, prefixes)
    made = [jax.jit(lambda batch, n=n: gradients_of(loss, trainable, frozen, batch, jax.random.key(0), n))(batch) for n in (1, parts)]
    return [(gradients, {name: float(value) for name, value in numbers(metrics).items()}) for gradients, metrics in made]


@pytest.mark.parametrize("parts", [2, 4])
def test_grounding(parts):
    loss = losses.stage_loss(CONFIG, StageConfig(level="dense"), CONSTANTS)
    whole, split = both(loss, tiny.state(), ("lora/dense", "adapter/dense"), dense_batch(np.random.default_rng(3), 8), parts)
    close(split[0], whole[0])
    assert split[1] == pytest.approx(whole[1], rel=1e-5)
    assert {"loss", "accuracy", "decision", "tokens", "slots"} == set(whole[1]) and 0 < whole[1]["tokens"] < whole[1]["slots"]


def test_conversations():
    config, state = conversing.model()
    shape = RowConfig(128, 0, 64, ())
    batch = stack([row([sample("text")] * count, shape) for count in (1, 0, 2, 0)])  # half of the parts have no label
    loss = lambda state, batch, key: conversation_loss(config, STAGE, state, batch)
    whole, parts = both(loss, state, ("params/decoder",), batch, 4)
    close(parts[0], whole[0])
    assert parts[1] == pytest.approx(whole[1], rel=1e-5) and whole[1]["conversations"] == 3


def test_a_part_without_labels_has_no_say_and_scalars_add_up():
    def loss(state, batch, key):
        mean = Mean.of(state["params"]["w"] * batch["x"], batch["mask"])
        return mean.value, {"loss": mean, "seen": jnp.sum(batch["x"])}

    batch = {"x": jnp.asarray([1.0, 2.0, 3.0, 4.0]), "mask": jnp.asarray([True, False, True, False])}  # rows 1 and 3 are the second part
    gradients, metrics = gradients_of(loss, {"params": {"w": jnp.float32(5)}}, {}, batch, jax.random.key(0), 2)
    assert float(gradients["params"]["w"]) == 2 and float(metrics["loss"]) == 10 and float(metrics["seen"]) == 10
    pooled = {**batch, "tokens": jnp.zeros((4, 3, 0))}  # features without tokens of a frame, as MAD's
    assert float(gradients_of(loss, {"params": {"w": jnp.float32(5)}}, {}, pooled, jax.random.key(0), 2)[1]["loss"]) == 10
    nothing = {**batch, "mask": jnp.zeros(4, bool)}
    gradients, metrics = gradients_of(loss, {"params": {"w": jnp.float32(5)}}, {}, nothing, jax.random.key(0), 2)
    assert float(gradients["params"]["w"]) == 0 and float(metrics["loss"]) == 0


def test_what_cannot_be_taken_in_parts_is_refused():
    for task in ("pretrain", "language"):
        with pytest.raises(ConfigError, match=rf"stages\.1a\.accumulate: must be 1 for the task {task}, whose loss compares all of a batch, is 2"):
            StageConfig(task=task, accumulate=2)
    with pytest.raises(ConfigError, match=r"stages\.1a\.accumulate: a batch of 32 does not divide into 3 parts"):
        StageConfig(accumulate=3)
    mesh = Mesh(np.array(jax.devices()[:1] * 2).reshape(2, 1, 1, 1), AXES)
    check_batch("stages.1a.batch", 12, mesh, Rules(), 3)
    with pytest.raises(ConfigError, match=r"a batch of 9 in 3 parts does not divide by the 2 devices .*multiple of 6"):
        check_batch("stages.1a.batch", 9, mesh, Rules(), 3)
