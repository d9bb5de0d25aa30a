"""One training step as one compiled program, the same on one device and on a pod.

`train_step(trainable, frozen, opt_state, batch, step) -> (trainable, opt_state, metrics)`. Trained leaves and optimizer state are donated;
the output's shardings are pinned to the input's, or the second call would compile again. The step's randomness is
`fold_in(stage key, step)`, so it does not depend on what ran before.

`stage.accumulate` parts of a batch are gone through in a loop of the same program, which adds up their gradients. A part weighs as much as the "loss" among its
metrics counts (labels, weights), so that loss and gradients are those of the whole batch; only the random numbers (dropout) are others.

With `train.not_finite="skip"` a step whose loss or gradient is no number leaves weights and optimizer state as they were.
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
from revision_jax.training.means import Mean, Metrics, numbers
from revision_jax.training.optimizer import warmup_cosine
from revision_jax.training.state import State, merge

Batch = dict[str, jax.Array]
Loss = Callable[[State, Batch, jax.Array], tuple[jax.Array, Metrics]]  # (state, batch, key) -> (loss, metrics)


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


def gradients_of(loss: Loss, trainable: State, frozen: State, batch: Batch, key: jax.Array, parts: int = 1, sharding: Any = None) -> tuple[State, Metrics]:
    """(gradients of the loss over a whole batch, its metrics with "loss" among them), the batch taken in `parts`.

    sharding: of the rows of a part, whose leading axis is split as a batch's. Rows part, part + parts, .. are a part: every device goes through its own.
    """

    def one(batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        (value, metrics), gradients = jax.value_and_grad(lambda trained: loss(merge(trained, frozen), batch, key), has_aux=True)(trainable)
        return gradients, {"loss": Mean(value, jnp.float32(1)), **metrics}

    if parts == 1:
        return one(batch, key)

    def add(sums: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        number, rows = part
        rows = rows if sharding is None else jax.lax.with_sharding_constraint(rows, sharding)
        gradients, metrics = one(rows, jax.random.fold_in(key, number))
        weight = metrics["loss"].count
        return jax.tree.map(jnp.add, sums, (jax.tree.map(lambda x: x * weight, gradients), metrics)), None

    split = {name: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradients, metrics), _ = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
    count = metrics["loss"].count
    return jax.tree.map(lambda x: x / jnp.where(count > 0, count, 1.0), gradients), metrics


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
    whole, rows = NamedSharding(mesh, P()), batch_sharding(mesh, rules)
    rate = warmup_cosine(stage.learning_rate, stage.steps, stage.warmup)
    seed = config.train.seed

    def train_step(trainable: State, frozen: State, opt_state: Any, batch: Batch, step: jax.Array):
        key = jax.random.fold_in(stage_key(seed, stage.name), step)
        with on_mesh(mesh):
            gradients, metrics = gradients_of(loss, trainable, frozen, batch, key, stage.accumulate, rows)
        updates, moved_opt_state = optimizer.update(gradients, opt_state, trainable)
        moved = optax.apply_updates(trainable, updates)
        metrics = {**numbers(metrics), "grad_norm": optax.global_norm(gradients), "learning_rate": rate(step)}
        if config.train.not_finite == "skip":
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            moved, moved_opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (moved, moved_opt_state), (trainable, opt_state))
        return moved, moved_opt_state, metrics

    return jax.jit(
        train_step,
        donate_argnums=(0, 2),
        in_shardings=(trainable_shardings, frozen_shardings, opt_shardings, rows, whole),
        out_shardings=(trainable_shardings, opt_shardings, whole),
    )
