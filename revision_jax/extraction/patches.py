"""The patch level's encoder: a few seconds of pictures each to merged tokens, before or after the pruner has chosen among them (`pruner.where`).

    after_encoder    frames go through it whole, CHUNK at once
    before_encoder   DiffFP decides by the pixels (`data/pruning.py`), each window by itself; what it keeps of all windows lies side by side in lines as long as
                     a frame (`data/compaction.py`), LINES at once, and the tokens go back to their places

The decoder is shown kept tokens alone in both. The search signal looks at every place of a frame, though, to say whether the question's subject is seen and
where. A token that was dropped did not change, so its place shows what it showed: that of the frame it was found alike to, the last one kept before it, or
with keep="last" the next one behind it. With nothing in its place a thing that stands still would be gone from the moment it stops.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Int, UInt8

from revision_jax.config import ExperimentConfig, PrunerConfig
from revision_jax.data.compaction import lines
from revision_jax.data.pruning import judged, measured
from revision_jax.extraction.video import CHUNK, encode_chunk, encoder_params, image_program, image_shapes
from revision_jax.models import revision
from revision_jax.stored_programs import StoredProgram

LINES = 16  # of one device call: of every call's last ones some are empty
TOGETHER = 256  # frames whose patches share lines, at most a window more; bounds what is held of them


class Seen(NamedTuple):
    """One window. change: what the pruner judges tokens by, as `models/pruner.py` stores it."""

    tokens: Float16[np.ndarray, "n N E"]
    change: Float16[np.ndarray, "n N"]


# ------------------------------------------------------------------------------------------------------------------------ programs


@functools.lru_cache(maxsize=8)
def line_program(config: ExperimentConfig) -> StoredProgram:
    """The compiled encoder of lines: (its parameters, patches [LINES P C], rows, columns and segments [LINES P]) to tokens [LINES N E] float16."""
    encoder = config.patch_encoder
    vision = config.encoder(encoder)

    def encode(
        params: dict, patches: Float[Array, "R P C"], rows: Int[Array, "R P"], columns: Int[Array, "R P"], segments: Int[Array, "R P"]
    ) -> Float16[Array, "R N E"]:
        grid = (vision.merge, patches.shape[1] // vision.merge)  # whatever the true one: each m^2 patches of a line are a token
        return revision.encode_frames(config, params, patches, rows, columns, segments > 0, grid, encoder, segments)["tokens"].astype(jnp.float16)

    return StoredProgram(encode, f"lines/{encoder}", json.dumps(dataclasses.asdict(vision), sort_keys=True))


def encoder_programs(config: ExperimentConfig, params: dict) -> list[tuple[StoredProgram, tuple]]:
    """Every encoder's program that answering with a model can need, and its arguments with shapes in place of pictures: of the feature store's encoder one for
    each grid, and for the patch level's, where it is another or sees lines, one for each grid or each length of a line."""
    looks, before = any(level.kind == "patch" and level.searched for level in config.grounding.levels), config.pruner.where == "before_encoder"
    encoder = config.patch_encoder
    whole = ("vision", encoder) if looks and not before else ("vision",)
    found = [(image_program(config, name), shapes) for name in dict.fromkeys(whole) for shapes in image_shapes(config, params, name)]
    if looks and before:
        vision, own = config.encoder(encoder), encoder_params(params, encoder)
        for length in sorted({rows * columns for rows, columns in vision.grids}):
            patches, index = jax.ShapeDtypeStruct((LINES, length, 3 * vision.patch**2), jnp.float32), jax.ShapeDtypeStruct((LINES, length), jnp.int32)
            found.append((line_program(config), (own, patches, index, index, index)))
    return found


# ------------------------------------------------------------------------------------------------------------------------- windows


def encode_windows(config: ExperimentConfig, params: dict, windows: Sequence[UInt8[np.ndarray, "_ h w 3"]]) -> tuple[list[Seen], int]:
    """What is seen in each window's pictures, which all have the size of one grid, and how many patches went through the encoder for it, padding among them.

    A window may be empty.
    """
    if not windows:
        return [], 0
    vision, pruner = config.encoder(config.patch_encoder), config.pruner
    change = [measured(window, vision.patch, vision.merge, pruner, vision.std).astype(np.float16) for window in windows]
    images, ends = np.concatenate(windows), np.cumsum([len(window) for window in windows])[:-1]
    if pruner.where == "after_encoder":
        tokens, patches = _whole(config, params, images)
        return list(map(Seen, np.split(tokens, ends), change)), patches
    keep = [judged(own, pruner) for own in change]  # of the very numbers that the decoder's tokens are chosen by
    tokens, patches = _kept(config, params, images, np.concatenate(keep))
    parts = zip(np.split(tokens, ends), keep, change, strict=True)
    return [Seen(carried(made, there, pruner), own) for made, there, own in parts], patches


def carried(tokens: Float16[np.ndarray, "n N E"], keep: Bool[np.ndarray, "n N"], pruner: PrunerConfig) -> Float16[np.ndarray, "n N E"]:
    """A window's tokens with those that were not kept replaced by the kept one that they are alike to."""
    frames = np.arange(len(keep))[:, None]
    if pruner.keep == "first":
        source = np.maximum.accumulate(np.where(keep, frames, 0))
    else:
        source = np.minimum.accumulate(np.where(keep, frames, len(keep) - 1)[::-1])[::-1]
    return tokens[source, np.arange(keep.shape[1])]


def _whole(config: ExperimentConfig, params: dict, images: UInt8[np.ndarray, "n h w 3"]) -> tuple[Float16[np.ndarray, "n N E"], int]:
    vision, patches = config.encoder(config.patch_encoder), _patches(config, images)
    tokens, starts = np.zeros((len(images), patches // vision.merge**2, vision.output), np.float16), range(0, len(images), CHUNK)
    for first in starts:
        part = slice(first, first + CHUNK)
        tokens[part] = encode_chunk(config, params, images[part], config.patch_encoder)["tokens"]
    return tokens, len(starts) * CHUNK * patches


def _kept(
    config: ExperimentConfig, params: dict, images: UInt8[np.ndarray, "n h w 3"], keep: Bool[np.ndarray, "n N"]
) -> tuple[Float16[np.ndarray, "n N E"], int]:
    """Kept tokens in their places, zeros elsewhere."""
    vision, own, program = config.encoder(config.patch_encoder), encoder_params(params, config.patch_encoder), line_program(config)
    length, calls = _patches(config, images), 0
    made = np.zeros((int(keep.sum()), vision.output), np.float16)
    for part in lines(images, keep, vision, length, LINES):
        there = part.tokens >= 0
        made[part.tokens[there]] = np.asarray(program(own, part.patches, part.rows, part.columns, part.segments))[there]
        calls += 1
    tokens = np.zeros((*keep.shape, vision.output), np.float16)
    tokens[keep] = made
    return tokens, calls * LINES * length


def _patches(config: ExperimentConfig, images: UInt8[np.ndarray, "n h w 3"]) -> int:
    """Patches of a frame."""
    patch = config.encoder(config.patch_encoder).patch
    return (images.shape[1] // patch) * (images.shape[2] // patch)
