"""Images and videos of a message: looked at without decoding (how many tokens will that be?), then read, resized and masked. Host only.

Which frames, what size, which text is `data/processing.py`'s; here are the files. What is held of a film is its resized frames as bytes: their number is
bounded by the token budget, which is checked between `look` and `read`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from revision_jax.config import PrunerConfig, VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data import video as host_video
from revision_jax.data.processing import Rules, Shape, kept_tokens, read_image, resize_video, sample_frames, target_sizes
from revision_jax.errors import UserError


@dataclass(frozen=True)
class Medium:
    """An image or a video, looked at. `seconds` are a video's timestamps, `reads` the seconds at which its frames are taken from the file."""

    path: str
    content: str  # hash of the file
    shape: Shape
    size: tuple[int, int]  # height, width in pixels to which it is resized
    merge: int
    seconds: tuple[float, ...] | None = None
    reads: tuple[float, ...] = ()

    def tokens(self, patch: int) -> int:
        """Merged tokens of one frame, before pruning."""
        return (self.size[0] // (patch * self.merge)) * (self.size[1] // (patch * self.merge))


class Pictures(NamedTuple):
    """A medium's frames at their final size, and which of their merged tokens are shown to the decoder."""

    frames: UInt8[np.ndarray, "T h w 3"]
    keep: Bool[np.ndarray, "T N"]


def look(
    images: Sequence[str | Path], videos: Sequence[str | Path], rules: Rules, vision: VisionConfig, max_pixels: int | None = None
) -> list[Medium]:
    """What one message shows, images first, sized together as one sample. `max_pixels`: at most so many for an image or a frame.

    Raises UserError for files that cannot be read.
    """
    found: list[tuple] = []
    for path in images:
        height, width = _image_size(path, rules)
        found.append((path, Shape("image", height, width), None, ()))
    for path in videos:
        info = host_video.probe(path)
        total = max(1, round(info.duration_s * info.fps))
        indices, seconds = sample_frames(total, info.fps, rules, end_s=info.duration_s)
        reads = tuple(float(i) for i in (indices + 0.5) / info.fps)  # in the middle of the frame, so that rounded times do not matter
        found.append((path, Shape("video", info.height, info.width, len(indices)), tuple(map(float, seconds)), reads))
    media = []
    for (path, shape, seconds, reads), size in zip(found, target_sizes([shape for _, shape, *_ in found], rules, vision.patch), strict=True):
        merge = rules.merge(shape.kind)
        size = shrunk(size, vision.patch * merge, max_pixels)
        media.append(Medium(str(path), host_video.content_hash(path), shape, size, merge, seconds, reads))
    return media


def shrunk(size: tuple[int, int], side: int, max_pixels: int | None) -> tuple[int, int]:
    """`size`, or the largest one of about its aspect ratio that has at most `max_pixels` and sides that are multiples of `side`, one token's.

    Raises UserError where not even one token fits.
    """
    if max_pixels is None or size[0] * size[1] <= max_pixels:
        return size
    if max_pixels < side * side:
        raise UserError(f"max_pixels: must be at least {side * side}, one token of {side} x {side} pixels, is {max_pixels}")
    beta = math.sqrt(size[0] * size[1] / max_pixels)
    height, width = (max(side, math.floor(x / beta / side) * side) for x in size)
    # A side that had to be one token long leaves less for the longer one.
    longest = max_pixels // min(height, width) // side * side
    return min(height, longest), min(width, longest)


def read(medium: Medium, rules: Rules, vision: VisionConfig, pruner: PrunerConfig) -> tuple[Medium, Pictures]:
    """Decodes a medium. A video that ends before its index says has fewer frames: the medium that comes back says how many.

    Raises UserError for files that cannot be read.
    """
    if medium.seconds is None:
        frames = host_frames.resize(read_image(medium.path, rules)[None], *medium.size)
    else:
        # Each frame is resized as it comes: what waits are small ones. PIL's filter, as the processor's.
        shown = [resize_video(picture[None], *medium.size)[0] for _, picture in host_video.read_at(medium.path, medium.reads)]
        if not shown:
            raise UserError(f"{medium.path}: no frame can be decoded")
        frames = np.stack(shown)
        if len(frames) < len(medium.seconds):
            shape = medium.shape._replace(frames=len(frames))
            medium = dataclasses.replace(medium, shape=shape, seconds=medium.seconds[: len(frames)], reads=medium.reads[: len(frames)])
    return medium, Pictures(frames, _keep(frames, medium, vision, pruner))


def _keep(frames: np.ndarray, medium: Medium, vision: VisionConfig, pruner: PrunerConfig) -> Bool[np.ndarray, "T N"]:
    count = medium.tokens(vision.patch)
    if len(frames) == 1:
        return np.ones((1, count), bool)
    if pruner.keep == "first" and pruner.reference == "previous":  # as released, in NumPy alone
        return kept_tokens(host_frames.token_change(frames, vision.patch, medium.merge, std=vision.std), pruner)
    from revision_jax.models.pruner import keep_mask, kept_change

    patches = host_frames.patchify(frames, vision.patch, medium.merge).astype(np.uint8)
    return np.asarray(keep_mask(kept_change(patches, medium.merge, pruner, std=vision.std), pruner))


def _image_size(path: str | Path, rules: Rules) -> tuple[int, int]:
    """(height, width) in pixels."""
    picture = read_image(path, rules)  # an EXIF turn swaps the sides, and a header can lie: one image is small enough to be looked at
    return picture.shape[0], picture.shape[1]
