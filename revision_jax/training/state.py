"""The state of a stage: what is trained and what is frozen.

A state is nested dicts of arrays (`params`, `lora/<level>`, `adapter/<level>`). A stage names path prefixes; `split` cuts the state into
the trained part, for which alone gradients and optimizer state exist, and the frozen rest, which the train step only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from revision_jax import paths
from revision_jax.config import ConfigError, StageConfig
from revision_jax.models.quantize import is_quantized

State = dict[str, Any]


def split(state: Mapping[str, Any], prefixes: tuple[str, ...], where: str = "train") -> tuple[State, State]:
    """(trainable, frozen): leaves under one of `prefixes`, and the others. Raises ConfigError for a prefix that nothing lies under."""
    leaves = paths.flatten(state)
    for prefix in prefixes:
        if not any(paths.under(name, prefix) for name in leaves):
            raise ConfigError(f"{where}: nothing of the model lies under {prefix!r}; there are {', '.join(paths.heads(leaves))}")
    trained = {name for name in leaves if any(paths.under(name, prefix) for prefix in prefixes)}
    return (
        paths.unflatten({name: leaf for name, leaf in leaves.items() if name in trained}),
        paths.unflatten({name: leaf for name, leaf in leaves.items() if name not in trained}),
    )


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> State:
    """The whole state again. Raises ValueError if a leaf is in both."""
    first, second = paths.flatten(trainable), paths.flatten(frozen)
    both = sorted(set(first) & set(second))
    if both:
        raise ValueError(f"trained and frozen at once: {', '.join(both)}")
    return paths.unflatten(dict(sorted({**first, **second}.items())))


def copied(state: Mapping[str, Any], copies: tuple[tuple[str, str], ...], where: str = "copies") -> State:
    """The state with subtrees copied: ("lora/dense", "lora/sparse") starts the second as a copy of the first.

    The copies are arrays of their own (the train step donates what it trains). Both subtrees exist and have the same names and shapes, so
    no stage changes what tensors a state has; otherwise ConfigError.
    """
    leaves = paths.flatten(state)
    for source, target in copies:
        new = {target + name[len(source) :]: leaf for name, leaf in leaves.items() if paths.under(name, source)}
        old = {name: leaf for name, leaf in leaves.items() if paths.under(name, target)}
        for end, found in ((source, new), (target, old)):
            if not found:
                raise ConfigError(f"{where}: nothing of the model lies under {end!r}; there are {', '.join(paths.heads(leaves))}")
        differs = sorted(name for name in set(old) | set(new) if name not in old or name not in new or old[name].shape != new[name].shape)
        if differs:
            raise ConfigError(f"{where}: {source!r} cannot be copied to {target!r}, which differs at {', '.join(differs)}")
        leaves.update({name: jnp.copy(leaf) for name, leaf in new.items()})
    return paths.unflatten(leaves)


def begin_stage(state: Mapping[str, Any], stage: StageConfig, base_dtype: str = "float32") -> State:
    """The state a stage starts from: its copies made, its trained leaves in float32 (the optimizer's steps are lost in 16 bits), frozen `params` in
    `base_dtype` (bfloat16 for "int8", beside a decoder that is quantised from the start), whatever a stage before has made of them."""
    where = f"stages.{stage.name}"
    state = copied(state, stage.copies, f"{where}.copies")
    trainable, frozen = split(state, stage.train, f"{where}.train")
    split(trainable, tuple(prefix for prefix, _ in stage.rates), f"{where}.rates")  # for its check of the prefixes
    trainable = _cast(trainable, "float32")
    if "params" in frozen:
        frozen = {**frozen, "params": _cast(frozen["params"], "bfloat16" if base_dtype == "int8" else base_dtype)}
    return merge(trainable, frozen)


def _cast(tree: Any, dtype: str) -> Any:
    """Floating leaves as `dtype`; int8 kernels and their scales stay as they are."""
    if isinstance(tree, Mapping):
        return {**tree} if is_quantized(tree) else {name: _cast(node, dtype) for name, node in tree.items()}
    return tree.astype(dtype) if jnp.issubdtype(tree.dtype, jnp.floating) else tree
