"""What a tree of weights is called: a hash of names, shapes, types and every bit, the same however the arrays are split over devices and processes.

Each array is reduced where it lies to two 32-bit sums of its mixed bits and positions; sums that wrap around do not depend on an order. It tells one base from
another, it does not keep out who means harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt32

from revision_jax import paths


def identity(tree: Mapping[str, Any]) -> str:
    """24 hexadecimal digits. tree: nested dicts of jax arrays; all processes must call this."""
    leaves = paths.flatten(tree)
    sums = jax.device_get({name: _mixer(leaf)(leaf) for name, leaf in leaves.items()})
    digest = hashlib.blake2b(digest_size=12)
    for name, leaf in leaves.items():
        digest.update(f"{name} {tuple(leaf.shape)} {leaf.dtype} ".encode() + np.asarray(sums[name]).tobytes())
    return digest.hexdigest()


def _mixer(leaf: jax.Array) -> Any:
    sharding = leaf.sharding
    return _mixed_on(NamedSharding(sharding.mesh, P())) if isinstance(sharding, NamedSharding) else jax.jit(mixed)


def _mixed_on(sharding: NamedSharding) -> Any:
    return jax.jit(mixed, out_shardings=sharding)


def mixed(x: Array) -> UInt32[Array, "2"]:
    """Two sums over all elements of a hash of their bits and their place in the whole array."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = (x.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0xC2B2AE35)
    bits = bits ^ (bits >> 13)
    again = (bits + place) * jnp.uint32(0x27D4EB2F)
    return jnp.stack([jnp.sum(bits, dtype=jnp.uint32), jnp.sum(again ^ (again >> 16), dtype=jnp.uint32)])
