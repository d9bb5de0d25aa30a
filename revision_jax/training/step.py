"""One training step as one compiled program, the same on one device and on a pod.

`train_step(trainable, frozen, opt_state, batch, step) -> (trainable, opt_state, metrics)`. Trained leaves and optimizer state are donated;
the output's shardings are pinned to the input's, or the second call would compile again. The step's randomness is
`fold_in(stage key, step)`, so it does not depend on what ran before.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from revision_jax import paths
from revision_jax.config import ExperimentConfig, StageConfig
from revision_jax.sharding.activations import on_mesh
from revision_jax.sharding.rules import Rules, batch_sharding
from revision_jax.training.optimizer import warmup_cosine
from revision_jax.training.state import State, merge

Loss = Callable[[State, dict[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]  # (state, batch, key) -> (loss, metrics)


def stage_key(seed: int, stage: str) -> jax.Array:
    """The PRNG key of a stage; differs by seed and by stage name (a CRC, because `hash` differs from one process to the next)."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def optimizer_shardings(optimizer: optax.GradientTransformation, trainable: Any, shardings: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shardings of the optimizer state: a leaf that mirrors a weight (same name at the end of its path, same shape) lies as the weight does,
    the rest (counters) is whole everywhere."""
    abstract = jax.eval_shape(optimizer.init, trainable)
    weights = {tuple(name.split("/")): (leaf.shape, sharding) for (name, leaf), sharding in
               zip(paths.flatten(trainable).items(), paths.flatten(shardings).values(), strict=True)}

    def shard(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(part for entry in path if isinstance(entry, jax.tree_util.DictKey) for part in str(entry.key).split("/"))
        for first in range(len(keys)):
            shape, sharding = weights.get(keys[first:], (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(shard, abstract)


def make_train_step(
    config: ExperimentConfig,
    stage: StageConfig,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules,
    trainable_shardings: Any,
    frozen_shardings: Any,
    opt_shardings: Any,
) -> Callable[..., tuple[State, Any, dict[str, jax.Array]]]:
    """The jitted step of one stage. Metrics are float32 scalars: what `loss` returns, and loss, grad_norm (before clipping), learning_rate.

    batch: arrays [B, ...]; step: int32 scalar, counted from 0 within the stage.
    """
    whole = NamedSharding(mesh, P())
    rate = warmup_cosine(stage.learning_rate, stage.steps, stage.warmup)
    seed = config.train.seed

    def train_step(trainable: State, frozen: State, opt_state: Any, batch: dict[str, jax.Array], step: jax.Array):
        key = jax.random.fold_in(stage_key(seed, stage.name), step)

        def loss_of(trainable: State):
            return loss(merge(trainable, frozen), batch, key)

        with on_mesh(mesh):
            (value, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        metrics = {**metrics, "loss": value, "grad_norm": optax.global_norm(gradients), "learning_rate": rate(step)}
        return optax.apply_updates(trainable, updates), opt_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)

    return jax.jit(
        train_step,
        donate_argnums=(0, 2),
        in_shardings=(trainable_shardings, frozen_shardings, opt_shardings, batch_sharding(mesh, rules), whole),
        out_shardings=(trainable_shardings, opt_shardings, whole),
    )
