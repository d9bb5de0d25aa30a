"""The optimizer of a stage: AdamW or Muon, linear warm-up then cosine to zero, clipping by the global norm, a learning rate for each part.

Norms, biases and every other vector take no weight decay. Muon (Newton-Schulz on the momentum; optax.contrib) is for the weight matrices,
each layer of a stacked one by itself; embeddings, heads and vectors go on with AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from revision_jax import paths
from revision_jax.config import StageConfig
from revision_jax.sharding.parameters import axes_of

Axes = Callable[[str, tuple[int, ...]], tuple[str | None, ...]]


def warmup_cosine(peak: float, steps: int, warmup: float) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Learning rate by step (from 0): up in a straight line over `warmup * steps` steps, whose last has `peak`, then half a cosine to zero.

    The first step already learns (peak / warm-up steps), and the step after the last would have rate 0.
    """
    warm = max(1, math.ceil(warmup * steps))

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warm + 1) / max(1, steps - warm + 1), 0.0, 1.0)
        return peak * jnp.where(step < warm, (step + 1) / warm, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    return rate


def _by_leaf(tree: Mapping[str, Any], decide: Callable[[tuple[str | None, ...]], Any], axes: Axes) -> dict[str, Any]:
    """`decide(logical axes)` for every leaf, same nesting; leaves that optax has masked out stay as they are."""
    leaves = paths.flatten(tree)
    return paths.unflatten({name: leaf if isinstance(leaf, optax.MaskedNode) else decide(axes(name, tuple(leaf.shape))) for name, leaf in leaves.items()})


def _is_matrix(names: tuple[str | None, ...]) -> bool:
    return len([name for name in names if name != "layers"]) >= 2


def decays(tree: Mapping[str, Any], axes: Axes = axes_of) -> dict[str, Any]:
    """True for every leaf that takes weight decay: what has two axes or more, the stacked layer axis not counted."""
    return _by_leaf(tree, _is_matrix, axes)


def muon_axes(tree: Mapping[str, Any], axes: Axes = axes_of) -> dict[str, Any]:
    """For every leaf the axes Muon orthogonalises (input, output), or None where AdamW serves: vectors, embeddings, anything not 2-D."""

    def decide(names: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        own = [i for i, name in enumerate(names) if name != "layers"]
        if len(own) != 2 or "vocab" in names:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=own[0], output_axis=own[1])

    return _by_leaf(tree, decide, axes)


def rate_of(stage: StageConfig, name: str) -> float:
    """The peak learning rate of one leaf: that of the longest prefix in `stage.rates` that it lies under, or the stage's."""
    fitting = [(len(prefix), rate) for prefix, rate in stage.rates if paths.under(name, prefix)]
    return max(fitting)[1] if fitting else stage.learning_rate


def _own_rates(stage: StageConfig) -> optax.GradientTransformation:
    """Scales each leaf's finished update by its own rate over the stage's: the same as having that rate, weight decay included."""

    def scaled(updates: Mapping[str, Any], _: Any = None) -> dict[str, Any]:
        leaves = paths.flatten(updates)
        return paths.unflatten({name: leaf * (rate_of(stage, name) / stage.learning_rate) for name, leaf in leaves.items()})

    return optax.stateless(scaled)


def make_optimizer(stage: StageConfig, axes: Axes = axes_of) -> optax.GradientTransformation:
    """The gradient transformation of a stage, for its trained part alone. `stage.clip` 0 means no clipping."""
    rate = warmup_cosine(stage.learning_rate, stage.steps, stage.warmup)

    def mask(tree: Mapping[str, Any]) -> dict[str, Any]:
        return decays(tree, axes)

    if stage.optimizer == "muon":
        # consistent_rms scales Muon's updates to AdamW's size, so that one learning rate serves both
        update = optax.contrib.muon(
            rate, weight_decay=stage.weight_decay, weight_decay_mask=mask, adam_weight_decay=0.0, consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda tree: muon_axes(tree, axes),
        )
    else:
        update = optax.adamw(rate, weight_decay=stage.weight_decay, mask=mask)
    clip = [optax.clip_by_global_norm(stage.clip)] if stage.clip > 0 else []
    own = [_own_rates(stage)] if stage.rates else []
    return optax.chain(*clip, update, *own) if clip or own else update
