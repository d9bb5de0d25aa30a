"""Where the search reads features: a store on disk or arrays in memory, gathered into the fixed slots of a level's windows.

Frame i is the tick i / rate. Which frame a slot shows is the level's `sampling` (`data.windows.slot_frames`), as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped

from revision_jax.data.features import FeatureStore
from revision_jax.data.windows import slot_frames
from revision_jax.grounding.levels import EPSILON, Window


@runtime_checkable
class Source(Protocol):
    """Features of one film."""

    key: str  # identity of film and encoder: what the prefix cache goes by
    rate: float  # frames per second
    duration_s: float
    frames: int

    def read_frames(self, first: int, stop: int, names: Iterable[str] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """True times and arrays of frames first .. stop - 1."""
        ...


class StoreSource:
    """A `FeatureStore` as a source; nothing is kept in memory."""

    def __init__(self, store: FeatureStore):
        self.store = store
        self.key = f"{store.header.video_hash}/{store.header.encoder}/{store.header.rate}"
        self.rate, self.duration_s, self.frames = store.header.rate, store.header.duration_s, store.frames

    def read_frames(self, first: int, stop: int, names: Iterable[str] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self.store.read_frames(first, stop, names)


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Features in memory: arrays {"frame": [n E], "tokens": [n N E], "change": [n N]}."""

    arrays: Mapping[str, np.ndarray]
    rate: float
    duration_s: float
    key: str = ""

    @property
    def frames(self) -> int:
        return len(self.arrays["frame"])

    def read_frames(self, first: int, stop: int, names: Iterable[str] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        stop = min(stop, self.frames)
        wanted = self.arrays if names is None else names
        return np.arange(first, stop) / self.rate, {name: self.arrays[name][first:stop] for name in wanted}


def gather(
    source: Source, windows: Sequence[Window], slots: int, names: Sequence[str], sampling: str = "even"
) -> tuple[dict[str, Shaped[np.ndarray, "W T ..."]], Bool[np.ndarray, "W T"]]:
    """Arrays of `slots` frames of each window (zeros where there is none), and which of them exist. Reads each stretch of the film once."""
    starts, spans, ends = (np.asarray([getattr(w, name) for w in windows], np.float64)[:, None] for name in ("start_s", "span_s", "end_s"))
    index = slot_frames(starts[:, 0], spans[:, 0], slots, source.rate, source.frames, sampling)
    if sampling == "even":
        inside = starts + np.arange(slots) * (spans / slots) < ends - EPSILON
    else:  # the end is included
        inside = index / source.rate <= ends + EPSILON
    valid = (index >= 0) & (index < source.frames) & inside
    arrays: dict[str, np.ndarray] = {}
    for members, first, stop in _stretches(index, valid):
        _, part = source.read_frames(first, stop, names)
        for name, values in part.items():
            out = arrays.setdefault(name, np.zeros((*index.shape, *values.shape[1:]), values.dtype))
            for w in members:
                out[w, valid[w]] = values[index[w, valid[w]] - first]
    if not arrays:  # nothing of the film is there (a truncated file): only the shapes are wanted
        _, part = source.read_frames(0, 1, names)
        arrays = {name: np.zeros((*index.shape, *values.shape[1:]), values.dtype) for name, values in part.items()}
    return arrays, valid


def _stretches(index: np.ndarray, valid: np.ndarray) -> list[tuple[list[int], int, int]]:
    """Windows that overlap or touch, as (their numbers, first frame, stop frame)."""
    bounds = sorted((int(index[w, valid[w]].min()), int(index[w, valid[w]].max()) + 1, w) for w in range(len(index)) if valid[w].any())
    cuts = [0]
    reach = bounds[0][1] if bounds else 0
    for i, (first, stop, _) in enumerate(bounds):
        if first > reach:
            cuts.append(i)
        reach = max(reach, stop)
    parts = [bounds[a:b] for a, b in pairwise([*cuts, len(bounds)])] if bounds else []
    return [([w for *_, w in part], part[0][0], max(stop for _, stop, _ in part)) for part in parts]
