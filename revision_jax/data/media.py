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
from revision_jax.data.processing import Rules, Shape, read_image, resize_video, sample_frames, target_sizes
from revision_jax.data.pruning import kept
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
    images: Sequence[str | Path], videos: Sequence[str | Path], rules: Rules, vision: VisionConfig, max_pixels: int | None = None,
    stretch: tuple[float, float] | None = None,
) -> list[Medium]:
    """What one message shows, images first, sized together as one sample. `max_pixels`: at most so many for an image or a frame.

    stretch: seconds [start, end) of the videos that are shown, timestamps counted from the start (default: all). Raises UserError for files that cannot be
    read.
    """
    found: list[tuple] = []
    for path in images:
        height, width = _image_size(path, rules)
        found.append((path, Shape("image", height, width), None, ()))
    for path in videos:
        found.append((path, *look_video(path, rules, *(stretch or ()))))
    media = []
    for (path, shape, seconds, reads), size in zip(found, target_sizes([shape for _, shape, *_ in found], rules, vision.patch), strict=True):
        merge = rules.merge(shape.kind)
        size = shrunk(size, vision.patch * merge, max_pixels)
        media.append(Medium(str(path), host_video.content_hash(path), shape, size, merge, seconds, reads))
    return media


def look_video(
    path: str | Path, rules: Rules, start_s: float = 0.0, end_s: float | None = None
) -> tuple[Shape, tuple[float, ...], tuple[float, ...]]:
    """(shape, the seconds that are said of its frames, those at which they are read) of a video, or of a part of it; what is said counts from `start_s`.

    Raises UserError for a file that cannot be read, and for a part in which no frame is shown.
    """
    info = host_video.probe(path)
    total = max(1, round(info.duration_s * info.fps))
    end = info.duration_s if end_s is None else min(end_s, info.duration_s)
    first, stop = (math.ceil(seconds * info.fps - 1e-6) for seconds in (start_s, end))
    if start_s > 0 or end < info.duration_s:
        if not first < min(stop, total):
            raise UserError(f"{path}: shows nothing between {start_s:g} and {end_s if end_s is not None else end:g} s; it lasts {info.duration_s:g} s")
        times = np.arange(first, min(stop, total)) / info.fps - start_s
        indices, seconds = sample_frames(len(times), info.fps, rules, times, end - start_s)
        indices, seconds = first + indices, seconds - (times[0] if rules.name == "original" else 0.0)  # its clock starts with the part
    else:
        indices, seconds = sample_frames(total, info.fps, rules, end_s=info.duration_s)
    reads = tuple(float(i) for i in (indices + 0.5) / info.fps)  # in the middle of the frame, so that rounded times do not matter
    return Shape("video", info.height, info.width, len(indices)), tuple(map(float, seconds)), reads


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


def read(medium: Medium, rules: Rules, vision: VisionConfig, pruner: PrunerConfig | None) -> tuple[Medium, Pictures]:
    """Decodes a medium; without a pruner all tokens are kept. A video that ends before its index says has fewer frames: the medium that comes back says so.

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
    if pruner is None:
        return medium, Pictures(frames, np.ones((len(frames), medium.tokens(vision.patch)), bool))
    return medium, Pictures(frames, kept(frames, vision.patch, medium.merge, pruner, vision.std))


def _image_size(path: str | Path, rules: Rules) -> tuple[int, int]:
    """(height, width) in pixels."""
    picture = read_image(path, rules)  # an EXIF turn swaps the sides, and a header can lie: one image is small enough to be looked at
    return picture.shape[0], picture.shape[1]
