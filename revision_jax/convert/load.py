"""A plan's leaves straight into memory: NumPy arrays, or jax arrays in the shardings they are wanted in, made of nothing but the slices asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.checkpoint import Index, Shardings
from revision_jax.convert.plan import Plan
from revision_jax.convert.transforms import fill, ordered

if TYPE_CHECKING:
    from jax.sharding import Sharding


def load_state(plans: Sequence[Plan], *, dtype: str | None = None, shardings: Shardings | None = None, apart: str = "") -> dict[str, Any]:
    """The state (nested dicts) that the plans give; leaves without a tensor are left out.

    dtype: of floating leaves (float16, bfloat16, float32); None keeps the source's. shardings: None gives NumPy arrays. Of each tensor a process reads the
    parts that its own devices hold, when it places them. apart: as of `checkpoint.load`. Raises what reading raises.
    """
    wanted = None if dtype is None else checkpoint.DTYPES[dtype]
    where = (lambda path: None) if shardings is None else checkpoint.sharding_of(shardings)
    leaves: dict[str, Any] = {}
    for plan in plans:
        stored = plan.dtypes()
        for path in plan.target:
            if path not in plan.unfilled:
                kind = wanted if wanted is not None and checkpoint.is_float(stored[path]) else stored[path]
                names = paths.slices(path, tuple(plan.target[path].shape), apart)
                leaves |= {name: _leaf(plan, path, kind, where(name), row) for name, row in names}
    return paths.unflatten(dict(sorted(leaves.items())))


def _leaf(plan: Plan, path: str, dtype: np.dtype, sharding: Sharding | None, row: int | None = None) -> Any:
    """One leaf, or one row of it: whole from one tensor, or its slices of the leading axis from one each. What the plan gives are views of mapped files, until
    here."""
    shape = tuple(plan.target[path].shape)[0 if row is None else 1 :]

    def read(index: Index) -> np.ndarray:
        if row is not None:
            part = plan.read(path, row) if plan.is_sliced(path) else plan.read(path)[row]
            return ordered(np.asarray(part[index]), dtype)
        if not plan.is_sliced(path):
            return ordered(np.asarray(plan.read(path)[index]), dtype)
        layers = range(*index[0].indices(shape[0]))
        parts = [plan.read(path, layer)[index[1:]] for layer in layers]
        out = np.empty((len(parts), *parts[0].shape), dtype)
        for slot, part in zip(out, parts, strict=True):
            fill(slot, part)
        return out

    if sharding is None:
        return read((slice(None),) * len(shape))
    return checkpoint.place(shape, sharding, read)
