"""Learned positions of a vision tower for another grid: the table resized as a picture, by the bicubic filter of the towers' own implementations.

Keys' cubic with a = -0.75, sampled at (i + 0.5) * from / to - 0.5, the border repeated, no antialiasing: torch's `interpolate(mode="bicubic")`, which
transformers' `interpolate_pos_encoding` uses. Source: Keys 1981; torch's `upsample_bicubic2d`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Num

from revision_jax.convert.transforms import Transform

A = -0.75


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel at a distance of 0 to 2."""
    near = ((A + 2) * distance - (A + 3)) * distance * distance + 1
    far = ((A * distance - 5 * A) * distance + 8 * A) * distance - 4 * A
    return np.where(distance <= 1, near, far)


def cubic_matrix(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """The weights with which `before` samples make `after`."""
    at = (np.arange(after) + 0.5) * before / after - 0.5
    low = np.floor(at).astype(int)
    weights = np.zeros((after, before))
    for step in range(-1, 3):
        np.add.at(weights, (np.arange(after), np.clip(low + step, 0, before - 1)), _cubic(np.abs(at - (low + step))))
    return weights.astype(np.float32)


def resize_table(table: Num[np.ndarray, "P D"], before: tuple[int, int], after: tuple[int, int]) -> Num[np.ndarray, "Q D"]:
    """A table of a (rows, columns) grid for another one, in float32, of the table's dtype."""
    if before == after:
        return table
    grid = np.asarray(table, np.float32).reshape(*before, -1)
    resized = np.einsum("ri,cj,ijd->rcd", cubic_matrix(before[0], after[0]), cubic_matrix(before[1], after[1]), grid, optimize=True)
    return resized.reshape(after[0] * after[1], -1).astype(table.dtype)


def resized(after: tuple[int, int], classes: int = 0) -> Transform:
    """Their square table as one of `after` (rows, columns). classes: rows in front that belong to no patch, left out."""

    def forward(table: np.ndarray) -> np.ndarray:
        table = table[classes:]
        side = round(len(table) ** 0.5)
        if side * side != len(table):
            raise ValueError(f"{len(table)} positions are no square grid")
        return resize_table(table, (side, side), after)

    def backward(table: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a resized table does not tell the one it came from")

    return Transform(f"positions of a grid of {after[0]} x {after[1]}", forward, backward)
