"""Kept patches of many frames side by side, so that what was pruned costs the encoder nothing: lines of a fixed length, whatever share is kept.

    keep    frame 0: a b c d     frame 1: . f . .     frame 2: . . k l     frame 3: m . . p
    lines   [a b c d]  [k l m p]  [f . . .]           a frame lies in one line whole; the encoder's attention stays inside a frame by segment ids

Best-fit-decreasing (`data/packing.py`). Patches keep their true rows and columns. One static shape for every share, where padding each frame to a budget of
its own would need a shape for each budget and still be half empty for the next film. NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from revision_jax.config import VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data.packing import place


class Lines(NamedTuple):
    """Some lines of L patches, ready for the encoder. L = n m^2: n places for merged tokens."""

    patches: Float32[np.ndarray, "R L C"]  # normalised; zero where nothing lies
    rows: Int32[np.ndarray, "R L"]
    columns: Int32[np.ndarray, "R L"]
    segments: Int32[np.ndarray, "R L"]  # 1, 2, .. for the frames of a line, 0 where nothing lies
    tokens: Int32[np.ndarray, "R n"]  # which kept token of the film stands there, counted frame after frame; -1 for none


def lines(
    frames: UInt8[np.ndarray, "T h w 3"], keep: Bool[np.ndarray, "T N"], vision: VisionConfig, length: int, together: int
) -> Iterator[Lines]:
    """The kept patches of a film in lines of `length` patches, `together` lines at a time; the last ones may be empty.

    Raises ValueError if `length` does not hold whole tokens, or not the frame that keeps most.
    """
    square = vision.merge**2
    counts = keep.sum(1)
    if length % square or counts.max(initial=0) * square > length:
        raise ValueError(f"lines of {length} patches cannot hold {counts.max(initial=0)} tokens of {square} patches each")
    grid = frames.shape[1] // vision.patch, frames.shape[2] // vision.patch
    rows, columns = (x.reshape(-1, square) for x in host_frames.positions(grid, vision.merge))
    before = np.cumsum(counts) - counts  # kept tokens of earlier frames
    held = _planned(counts, length // square)
    for first in range(0, len(held), together):
        out = _empty(together, length, square, 3 * vision.patch**2)
        for line, members in enumerate(held[first : first + together]):
            at = 0
            for segment, frame in enumerate(members, start=1):
                cells = np.flatnonzero(keep[frame])
                own = slice(at * square, (at + len(cells)) * square)
                patches = host_frames.encoder_patches(frames[frame, None], vision).reshape(-1, square, out.patches.shape[2])
                out.patches[line, own] = patches[cells].reshape(-1, out.patches.shape[2])
                out.rows[line, own], out.columns[line, own] = rows[cells].reshape(-1), columns[cells].reshape(-1)
                out.segments[line, own] = segment
                out.tokens[line, at : at + len(cells)] = before[frame] + np.arange(len(cells))
                at += len(cells)
        yield out


def _planned(counts: np.ndarray, room: int) -> list[list[int]]:
    """The frames of each line: every frame that keeps a token, whole, in few lines of `room` tokens."""
    runs = [(1, int(count)) for count in counts if count]
    numbers = np.flatnonzero(counts)
    free = [room] * len(runs)
    held: list[list[tuple[int, int]]] = [[] for _ in runs]
    for stretch in place(runs, free, list(free)):
        held[stretch.slot].append((stretch.offset, int(numbers[stretch.run])))
    return [[frame for _, frame in sorted(line)] for line in held if line]


def _empty(count: int, length: int, square: int, channels: int) -> Lines:
    index = lambda: np.zeros((count, length), np.int32)
    return Lines(np.zeros((count, length, channels), np.float32), index(), index(), index(), np.full((count, length // square), -1, np.int32))
