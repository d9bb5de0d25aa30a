"""DiffFP, VideoLLaMA3's differential frame pruner: which tokens of a video changed, and those alone in an array of fixed size.

Unit of a change: mean |difference| of the token's normalised pixels (3 m^2 p^2 values), times 255. With the released mean and std of 0.5 that is twice
the mean difference in grey levels, so the released threshold of 0.1 is 0.05 grey levels of 255: little more than exact copies is dropped.
For uint8 pixels the sums are integers and a mask does not depend on the number format.

A change is stored for the later frame of a pair, [T N], +inf for frame one. `score` turns it into what `PrunerConfig.keep` asks for: with "first" (as
released) a token is judged by its change since the frame before and frame one is kept whole; with "last" (the paper's text) by its change until the
next frame, and the final frame is kept whole.

Source: arXiv 2501.13106 section 2.2, and the image processor of transformers' `video_llama_3`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from revision_jax.config import PrunerConfig


class Compacted(NamedTuple):
    """Kept tokens in an array of fixed size, in their order in time and space; what is not `valid` is zero."""

    tokens: Num[Array, "M D"]
    frame: Int[Array, " M"]
    cell: Int[Array, " M"]  # place in the frame's N merged tokens
    valid: Bool[Array, " M"]
    dropped: Int[Array, ""]  # kept tokens that found no room


# -------------------------------------------------------------------------------------------------------------------------- change


def pixel_change(
    frames: Float[Array | np.ndarray, "T P C"] | UInt8[Array | np.ndarray, "T P C"], merge: int, std: tuple[float, ...] = (0.5, 0.5, 0.5)
) -> Float[Array, "T N"]:
    """Change of each merged token to the frame before, +inf for frame one.

    `frames`: block-major patches, channel-first (3, p, p) flattened; normalised floats, or uint8 before normalisation by `std` (exact: integer sums).
    """
    frames = jnp.asarray(frames)
    before = jnp.concatenate([frames[:1], frames[:-1]])
    return _distance(frames, before, merge, std).at[0].set(jnp.inf)


def kept_change(
    frames: Float[Array | np.ndarray, "T P C"] | UInt8[Array | np.ndarray, "T P C"], merge: int, config: PrunerConfig,
    frame_mask: Bool[Array | np.ndarray, " T"] | None = None, std: tuple[float, ...] = (0.5, 0.5, 0.5),
) -> Float[Array, "T N"]:
    """Change of each merged token as `config.reference` asks: to the frame before ("previous"), or to the last token kept in its place ("last_kept").

    "last_kept" sees a slow drift that "previous" misses (run-length tokenisation, arXiv 2411.05222). With keep="last" it runs backwards in time.
    Frames outside `frame_mask` (which come last) count as copies of the final one.
    """
    frames = jnp.asarray(frames)
    if frame_mask is not None:
        final = jnp.where(jnp.asarray(frame_mask), jnp.arange(frames.shape[0]), 0).max()
        frames = jnp.where(jnp.asarray(frame_mask)[:, None, None], frames, frames[final])
    if config.reference == "previous":
        return pixel_change(frames, merge, std)
    backwards = config.keep == "last"

    def step(kept, now):
        distance = _distance(now[None], kept[None], merge, std)[0]
        changed = jnp.repeat(distance > config.threshold, merge * merge)
        return jnp.where(changed[:, None], now, kept), distance

    ordered = frames[::-1] if backwards else frames
    _, distance = jax.lax.scan(step, ordered[0], ordered[1:])
    first = jnp.full((1, distance.shape[1]), jnp.inf)
    # Backwards, the distance of frame t is to a later one: stored with frame t + 1, as all changes are, so that `score` finds it.
    return jnp.concatenate([first, distance[::-1] if backwards else distance])


def _distance(now: Array, then: Array, merge: int, std: tuple[float, ...]) -> Array:
    """[T P C] twice to [T N] in the unit above."""
    frames, patches, values = now.shape
    tokens = patches // (merge * merge)
    if jnp.issubdtype(now.dtype, jnp.integer):
        difference = jnp.abs(now.astype(jnp.int32) - then.astype(jnp.int32))
        sums = difference.reshape(frames, tokens, merge * merge, len(std), -1).sum(axis=(2, 4))
        return (sums.astype(jnp.float32) / jnp.asarray(std, jnp.float32)).sum(axis=-1) / (merge * merge * values)
    difference = jnp.abs(now.astype(jnp.float32) - then.astype(jnp.float32))
    return difference.reshape(frames, tokens, -1).mean(axis=-1) * 255.0


# ---------------------------------------------------------------------------------------------------------------------------- mask


def score(change: Float[Array | np.ndarray, "T N"], config: PrunerConfig, frame_mask: Bool[Array | np.ndarray, " T"] | None = None) -> Float[Array, "T N"]:
    """What a token is judged by under `config.keep`; +inf where the whole frame is kept, 0 in frames outside `frame_mask` (which come last)."""
    change = jnp.asarray(change, jnp.float32)
    mask = jnp.ones(change.shape[0], bool) if frame_mask is None else jnp.asarray(frame_mask)
    index = jnp.arange(change.shape[0])
    if config.keep == "last":
        change = jnp.concatenate([change[1:], change[:1]])
        whole = index == jnp.where(mask, index, 0).max()
    else:
        whole = index == 0
    return jnp.where(mask[:, None], jnp.where(whole[:, None], jnp.inf, change), 0.0)


def keep_mask(change: Float[Array | np.ndarray, "T N"], config: PrunerConfig, frame_mask: Bool[Array | np.ndarray, " T"] | None = None) -> Bool[Array, "T N"]:
    """Which tokens stay: those judged above the threshold; of a frame with fewer than `min_tokens` of them its first `min_tokens` as well."""
    keep = score(change, config, frame_mask) > config.threshold
    few = keep.sum(axis=1, keepdims=True) < config.min_tokens
    keep = keep | (few & (jnp.arange(keep.shape[1]) < config.min_tokens))
    return keep if frame_mask is None else keep & jnp.asarray(frame_mask)[:, None]


# ---------------------------------------------------------------------------------------------------------------------- compaction


def compact(tokens: Num[Array, "T N D"], keep: Bool[Array, "T N"], change: Float[Array, "T N"], budget: int) -> Compacted:
    """The kept tokens in `budget` slots, in stable order. Where more are kept, those with the least `change` (a `score`) go first, later ones before
    earlier ones among equals, and are counted.
    """
    frames, cells, width = tokens.shape
    total = frames * cells
    kept, rank = keep.reshape(total), change.reshape(total).astype(jnp.float32)
    room = min(budget, total)
    # top_k puts the earlier of equals first, so the later ones fall out; sorting the places restores the order of time and space.
    best, place = jax.lax.top_k(jnp.where(kept, rank, -jnp.inf), room)
    place = jnp.sort(jnp.where(best > -jnp.inf, place, total))
    place = jnp.pad(place, (0, budget - room), constant_values=total)
    valid = place < total
    place = jnp.where(valid, place, 0)
    gathered = jnp.where(valid[:, None], tokens.reshape(total, width)[place], 0)
    return Compacted(gathered, jnp.where(valid, place // cells, 0), jnp.where(valid, place % cells, 0), valid, kept.sum() - valid.sum())


def prune(
    tokens: Num[Array, "T N D"], change: Float[Array, "T N"], config: PrunerConfig, budget: int, frame_mask: Bool[Array, " T"] | None = None
) -> Compacted:
    """Mask and compaction in one: what `config` keeps of one video's tokens (features after the encoder), in `budget` slots."""
    return compact(tokens, keep_mask(change, config, frame_mask), score(change, config, frame_mask), budget)
