"""How one of their arrays becomes one of ours, and back. Views wherever NumPy can give one, so that a memory-mapped tensor stays on disk.

A transform is two functions of one array. `ROWS(k, n)` takes a part: several rules read one tensor then, and on the way back the parts are put on
top of each other in the order of k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
TILE = 128  # columns copied at once


def fill(out: np.ndarray, array: np.ndarray) -> None:
    """Copies into `out`, which is in C order. A transposed view read row by row misses the cache at every number: some columns at once are seven times
    faster."""
    if array.ndim < 2 or array.flags.c_contiguous:
        out[...] = array
    else:
        for column in range(0, array.shape[-1], TILE):
            out[..., column : column + TILE] = array[..., column : column + TILE]


def ordered(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """A copy in C order, as `dtype` (None: its own)."""
    copy = np.empty(array.shape, array.dtype if dtype is None else dtype)
    fill(copy, array)
    return copy


class Transform(NamedTuple):
    """`forward`: theirs -> ours; `backward`: ours -> theirs. `part`: (k, n) if only the k-th of n equal row blocks of theirs is meant."""

    name: str
    forward: Function
    backward: Function
    part: tuple[int, int] | None = None


SAME = Transform("as it is", lambda x: x, lambda x: x)
TRANSPOSE = Transform("transposed", lambda x: x.T, lambda x: x.T)  # torch keeps a linear layer [out, in], this project [in, out]


def _from_kernel(x: np.ndarray) -> np.ndarray:
    """Conv kernel [D, 3, p, p] -> [3 p p, D]: a patch is flattened channel, row, column."""
    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3]:
        raise ValueError(f"a patch kernel is [width, 3, patch, patch], not {x.shape}")
    return x.reshape(x.shape[0], -1).T


def _to_kernel(x: np.ndarray) -> np.ndarray:
    side = round((x.shape[0] / 3) ** 0.5)
    return x.T.reshape(x.shape[1], 3, side, side)


PATCH_KERNEL = Transform("patch kernel", _from_kernel, _to_kernel)


def SQUEEZE(*axes: int) -> Transform:
    """Axes of length one of theirs that ours does not have: SQUEEZE(0, 1) turns [1, 1, D] into [D]."""
    return Transform(f"without axes {axes}", lambda x: np.squeeze(x, axes), lambda x: np.expand_dims(x, axes))


def RESHAPE(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Transform:
    """The same numbers in the same order. A shape other than `theirs` raises ValueError, which a plan reports."""

    def turn(x: np.ndarray, before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
        if x.shape != before:
            raise ValueError(f"has shape {x.shape}, expected {before}")
        return x.reshape(after)

    return Transform(f"{theirs} as {ours}", lambda x: turn(x, theirs, ours), lambda x: turn(x, ours, theirs))


def ROWS(k: int, n: int, then: Transform = SAME) -> Transform:
    """The k-th (from 0) of n equal blocks of rows, then `then`: in_proj_weight [3 D, D] gives q, k and v by ROWS(0, 3), ROWS(1, 3), ROWS(2, 3)."""

    def forward(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % n:
            raise ValueError(f"{x.shape[0]} rows do not divide by {n}")
        rows = x.shape[0] // n
        return then.forward(x[k * rows : (k + 1) * rows])

    return Transform(f"row block {k} of {n}, {then.name}", forward, then.backward, (k, n))
