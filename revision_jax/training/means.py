"""Means that can be taken over parts of a batch: kept as sum and count until the last part has come.

A loss gives metrics of two kinds. A `Mean` is divided at the end, whatever each part's count was; a bare scalar is a sum over rows, and parts add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """Two float32 scalars. Nothing counted is 0."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array) -> Mean:
        """Of values weighted, or picked by a mask; the same shape."""
        weights = weights.astype(jnp.float32)
        return cls(jnp.sum(values * weights), jnp.sum(weights))

    @property
    def value(self) -> jax.Array:
        return self.total / jnp.where(self.count > 0, self.count, 1.0)

    def __float__(self) -> float:
        return float(self.value)


Metrics = Mapping[str, jax.Array | Mean]


def numbers(metrics: Metrics) -> dict[str, jax.Array]:
    """Every metric as a float32 scalar."""
    return {name: jnp.asarray(item.value if isinstance(item, Mean) else item, jnp.float32) for name, item in metrics.items()}
