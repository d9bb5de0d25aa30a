"""A plan's leaves straight into memory: NumPy arrays, or jax arrays in the shardings they are wanted in, made of nothing but the slices asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from revision_jax import checkpoint, paths
from revision_jax.checkpoint import Index, Shardings
from revision_jax.convert.plan import Plan


def load_state(plans: Sequence[Plan], *, dtype: str | None = None, shardings: Shardings | None = None) -> dict[str, Any]:
    """The state (nested dicts) that the plans give; leaves without a tensor are left out.

    dtype: of floating leaves (float16, bfloat16, float32); None keeps the source's. shardings: None gives NumPy arrays. Raises what reading raises.
    """
    wanted = None if dtype is None else checkpoint.DTYPES[dtype]
    leaves: dict[str, Any] = {}
    for plan in plans:
        stored = plan.dtypes()
        pieces: dict[str, dict[int | None, Any]] = defaultdict(dict)
        for path, index, array in plan.apply():
            leaf = plan.target[path]
            kind = wanted if wanted is not None and checkpoint.is_float(stored[path]) else stored[path]
            pieces[path][index] = array
            if index is None or len(pieces[path]) == leaf.shape[0]:
                leaves[path] = _leaf(path, tuple(leaf.shape), kind, pieces.pop(path), shardings)
    return paths.unflatten(dict(sorted(leaves.items())))


def _leaf(path: str, shape: tuple[int, ...], dtype: np.dtype, pieces: Mapping[int | None, np.ndarray], shardings: Shardings | None) -> Any:
    """One leaf from its whole array, or from the slices of its leading axis: views of mapped files, until here."""

    def read(index: Index) -> np.ndarray:
        if None in pieces:
            return np.array(pieces[None][index], dtype)
        layers = range(*index[0].indices(shape[0]))
        parts = [pieces[layer][index[1:]] for layer in layers]
        out = np.empty((len(parts), *parts[0].shape), dtype)
        for slot, part in zip(out, parts, strict=True):
            slot[...] = part
        return out

    if shardings is None:
        return read((slice(None),) * len(shape))
    return checkpoint.place(shape, checkpoint.sharding_of(shardings, path), read)
