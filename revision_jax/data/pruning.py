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
    return judged(measured(frames, patch, merge, pruner, std), pruner)


def measured(frames: UInt8[np.ndarray, "T h w 3"], patch: int, merge: int, pruner: PrunerConfig, std: tuple[float, float, float]) -> Float[np.ndarray, "T N"]:
    """How much each merged token changed, beside what `pruner.reference` says, in DiffFP's unit; stored for the later frame of a pair, +inf in the first.
    float32."""
    if pruner.reference == "previous" or not len(frames):
        return token_change(frames, patch, merge, std=std)
    if pruner.keep == "first":
        return _change_to_kept(frames, patch, merge, pruner, std)
    # Compared with what was kept time runs backwards: the change of a frame is one to a later one.
    return np.roll(_change_to_kept(frames[::-1], patch, merge, pruner, std)[::-1], 1, axis=0)


def judged(change: Float[np.ndarray, "T N"], pruner: PrunerConfig) -> Bool[np.ndarray, "T N"]:
    """Which merged tokens of a stretch stay, by their change (`measured`): the first frame whole, or with keep="last", where a token is judged by its change
    until the next frame, the final one."""
    change = np.asarray(change, np.float32)
    if pruner.keep == "last":
        change = np.roll(change, -1, axis=0)
    whole = np.arange(len(change)) == (len(change) - 1 if pruner.keep == "last" else 0)
    return kept_tokens(np.where(whole[:, None], np.float32(np.inf), change), pruner)


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
