"""The arrays that show frames to a model: their static shapes, and filling them in place.

    frames [*b T E], tokens [*b T N E] as stored (float16), frame_mask [*b T], times [*b T] f32

A batch is allocated once and every example fills its row of it, so that a frame is copied twice between the disk and the batch: from the disk to a block of
the store, and from there to its place (`Film.gather`). What lies outside of a film is zeros under a False mask.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from revision_jax.data.corpus import Film
from revision_jax.errors import UserError

Shapes = dict[str, tuple[tuple[int, ...], str]]  # field -> (shape, dtype)
Out = dict[str, np.ndarray]  # the same fields, to be filled: zeros at first


class Frames:
    """What is shown of a frame: its vector and, where the config compares those, its patch tokens."""

    def __init__(self, film: Film, late: bool):
        """film: any of the corpus, which all have the same arrays. late: with patch tokens; otherwise there are none of them (N = 0)."""
        vector, dtype = film.arrays["frame"]
        tokens = film.arrays["tokens"] if late else ((0, *vector), dtype)
        self._kinds = {"frame": (vector, dtype), "tokens": tokens}

    def shapes(self, *leading: int) -> Shapes:
        vector, tokens = self._kinds["frame"], self._kinds["tokens"]
        return {
            "frames": ((*leading, *vector[0]), vector[1]), "tokens": ((*leading, *tokens[0]), tokens[1]), "frame_mask": (leading, "bool"),
            "times": (leading, "float32"),
        }  # fmt: skip

    def fill(self, film: Film, index: Int[np.ndarray, "*b T"], origin_s: float, out: Out) -> Float64[np.ndarray, "*b T"]:
        """Frames `index` of a film; returns their true times, in seconds from `origin_s` on. Raises UserError for a film whose arrays are not the corpus'."""
        show(film, "frame", index, out["frames"])
        if out["tokens"].size:
            show(film, "tokens", index, out["tokens"])
        out["frame_mask"][...] = (index >= 0) & (index < film.count)
        times = film.times_of(index) - origin_s
        out["times"][...] = times
        return times


def show(film: Film, name: str, index: Int[np.ndarray, "*b T"], out: np.ndarray) -> None:
    """Array `name` of frames `index` into `out`. Raises UserError where the film's is of another shape or type."""
    shape, dtype = film.arrays.get(name, ((), "none"))
    if (tuple(shape), np.dtype(dtype) if shape else None) != (out.shape[index.ndim :], out.dtype):
        wanted = f"{out.dtype} of shape {out.shape[index.ndim :]}"
        raise UserError(f"{film.store.path}: {name} is {dtype} of shape {shape}, of the other films {wanted}; encode all films alike")
    film.gather(index, name, out)
