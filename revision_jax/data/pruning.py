"""DiffFP on the host: which merged tokens of a video's frames are kept, for every choice of `PrunerConfig`. NumPy, so that data workers can decide.

The same mask as `models/pruner.py` makes of patches on the device; from bytes it is exact integer arithmetic in both.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

from revision_jax.config import PrunerConfig
from revision_jax.data.frames import token_change
from revision_jax.data.processing import kept_tokens


def kept(frames: UInt8[np.ndarray, "T h w 3"], patch: int, merge: int, pruner: PrunerConfig, std: tuple[float, float, float]) -> Bool[np.ndarray, "T N"]:
    """Which merged tokens stay. A single frame is kept whole."""
    if pruner.reference == "previous":
        change = token_change(frames, patch, merge, std=std)
    else:
        change = _change_to_kept(frames[::-1] if pruner.keep == "last" else frames, patch, merge, pruner, std)
    if pruner.keep == "first":
        return kept_tokens(change, pruner)
    # Judged by the change until the next frame; the final frame is kept whole. Compared with what was kept, time runs backwards already.
    change = np.roll(change, -1, axis=0) if pruner.reference == "previous" else change[::-1]
    return kept_tokens(change, pruner)


def _change_to_kept(
    frames: UInt8[np.ndarray, "T h w 3"], patch: int, merge: int, pruner: PrunerConfig, std: tuple[float, float, float]
) -> Float[np.ndarray, "T N"]:
    """Change of each token to the last one kept in its place, +inf in the first frame."""
    side = patch * merge
    last = frames[0].copy()
    change = [token_change(frames[:1], patch, merge, std=std)]
    for frame in frames[1:]:
        change.append(token_change(frame[None], patch, merge, previous=last, std=std))
        grid = (change[-1][0] > pruner.threshold).reshape(frame.shape[0] // side, frame.shape[1] // side)
        changed = grid.repeat(side, 0).repeat(side, 1)
        last[changed] = frame[changed]
    return np.concatenate(change)
