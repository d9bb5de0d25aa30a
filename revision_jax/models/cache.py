"""The decoder's KV cache: `{"layers": [{"k" [B G d M], "v" [B G M d]}, ..], "valid" [B M], "signal" [B M C] or None}`.

A cache that lies behind another one (`behind`) holds that one's keys and values apart, as "before" in each layer, and never writes them. Then M of a layer's
own arrays are the slots behind those alone, while slots are numbered, and valid and signal told, for both. Hypotheses of one prompt share what is before
(`fork`): its rows are fewer, row b being that of rows b J to b J + J - 1.

Heads come before slots, and keys lie with their width first, so that the two products of a step (query by keys, weights by values) read them as they lie. With
slots first a CPU copies the whole cache at every token: a step's attention over 200 slots took thirty times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from revision_jax.config import DecoderConfig

SLOTS = {"k": 3, "v": 2}  # the axis of slots of a layer's parts; 1 of all else


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: jnp.dtype | str | None = None) -> dict:
    """An empty cache of `length` slots.

    dtype of keys and values: that of the activations if not given. Donate it to the jitted step that returns its successor.
    """
    shape, dtype = (batch, config.kv_heads), dtype or config.dtype
    layers = [
        {"k": jnp.zeros((*shape, config.head_dim, length), dtype), "v": jnp.zeros((*shape, length, config.head_dim), dtype)} for _ in range(config.layers)
    ]
    return {"layers": layers, "valid": jnp.zeros((batch, length), bool), "signal": None}


def write(slots: Array, new: Array, start: Int[Array, "*b"] | int, axis: int = 1) -> Array:
    """`slots` with `new` written from `start` of its axis on, in the slots' dtype. One start for all rows is one in-place update, one each is a scatter."""
    new = new.astype(slots.dtype)
    if jnp.ndim(start) == 0:
        return jax.lax.dynamic_update_slice_in_dim(slots, new, start, axis)
    columns = start[:, None] + jnp.arange(new.shape[axis])
    rows = jnp.arange(slots.shape[0])[:, None]
    written = jnp.moveaxis(slots, axis, 1).at[rows, columns].set(jnp.moveaxis(new, axis, 1), mode="drop")
    return jnp.moveaxis(written, 1, axis)


def write_layer(layer: dict, k: Array, v: Array, start: Int[Array, "*b"] | int) -> dict:
    """A layer's part of the cache with the keys and values [B S G d] of new slots."""
    k, v = jnp.moveaxis(k, 1, SLOTS["k"]), jnp.moveaxis(v, 1, SLOTS["v"])
    start = start - before(layer)
    return {**layer, "k": write(layer["k"], k, start, SLOTS["k"]), "v": write(layer["v"], v, start, SLOTS["v"])}


def before(layer: dict) -> int:
    """How many slots of a layer's part lie in the cache before it."""
    return layer["before"]["v"].shape[SLOTS["v"]] if "before" in layer else 0


def map_slots(function: Callable[[Array, int], Array], cache: dict) -> dict:
    """The cache with `function(array, axis of its slots)` in place of each array of its own."""
    layers = [layer | {name: function(layer[name], axis) for name, axis in SLOTS.items()} for layer in cache["layers"]]
    signal = None if cache["signal"] is None else function(cache["signal"], 1)
    return {"layers": layers, "valid": function(cache["valid"], 1), "signal": signal}


def grow(cache: dict, more: int) -> dict:
    """The cache with `more` free slots behind its own."""
    return map_slots(lambda x, axis: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]), cache)


def behind(cache: dict, more: int) -> dict:
    """An empty cache of `more` slots behind the slots of this one, which are read where they lie and lie behind no others. It has no signal yet."""

    def empty(x: Array, axis: int) -> Array:
        return jnp.zeros((*x.shape[:axis], more, *x.shape[axis + 1 :]), x.dtype)

    layers = [{name: empty(layer[name], axis) for name, axis in SLOTS.items()} | {"before": layer} for layer in cache["layers"]]
    return {"layers": layers, "valid": jnp.pad(cache["valid"], ((0, 0), (0, more))), "signal": None}


def fork(cache: dict, times: int) -> dict:
    """Each row `times` times, what is before them once."""
    return cache if times == 1 else map_slots(lambda x, axis: jnp.repeat(x, times, 0), cache)


def follow(cache: dict, rows: Int[Array, "B"], first: int, count: int) -> dict:
    """The cache with `count` slots from `first` on taken from other rows, as beam search needs it where rows differ in these slots alone."""
    total = cache["valid"].shape[1]

    def picked(x: Array, axis: int) -> Array:
        own = first - (total - x.shape[axis])  # keys and values leave out the slots before them
        part = jax.lax.slice_in_dim(x, own, own + count, axis=axis)[rows]
        return jax.lax.dynamic_update_slice_in_dim(x, part, own, axis)

    return {**map_slots(picked, {**cache, "signal": None}), "signal": cache["signal"]}


def stack_caches(caches: list[dict]) -> dict:
    """Caches of the same length and kind, their rows one after another. All or none must hold a signal."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=0), *caches)


def take_rows(cache: Any, rows: Int[Array, "B"] | slice) -> Any:
    """The cache with its rows picked, repeated or reordered."""
    return jax.tree.map(lambda x: x[rows], cache)
