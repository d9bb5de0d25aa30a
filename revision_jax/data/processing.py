"""Pictures and videos as VideoLLaMA3's processors prepare them: which frames, what size, which patches, which text. NumPy and PIL.

There are two processors of one model, and they disagree. `Rules` names which is followed:

    "transformers"  every image inside its own pixel bounds; the frames of a video share one upper bound, which wins over the lower (180 frames of 720p
                    become 28 x 56 pixels); frame floor(k total / n) of n = clamp(seconds * fps, 4, 180)
    "original"      all images and frames of a sample share one token budget, and 16 tokens for each of them are safe (the same film becomes 196 x 336);
                    frames by ffmpeg's `fps` filter rounding down, thinned evenly where there are more than 180

Both: sides are multiples of f = patch * merge, nearly at the picture's own aspect ratio, resized by PIL's antialiased bicubic. That is the filter of both
processors' images and of the original's videos; transformers resizes videos by torchvision's antialiased bicubic. Both filters round to bytes between
their two passes. PIL went along the rows first until version 12, as torchvision does; 13 goes along the columns first where that is less work (tall
pictures), which moves results by up to 7 of 255 grey levels. So images are resized in one call (equal to the processors' with the same PIL), frames
of videos along the rows first, whatever the PIL: largest deviation from torchvision 2 levels, 0.006 in the mean.

The pruner's mask is the one of the float32 pixels, which is exact integer arithmetic on bytes (`data.frames.token_change`). The original repository is mostly
run with bfloat16 pixels, whose mask is a little looser where a token changed by about the threshold.

Sources: transformers `video_llama_3`; github.com/DAMO-NLP-SG/VideoLLaMA3 (Apache 2.0), its image processor and `load_video`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from revision_jax.config import ConfigError, PrunerConfig, VisionConfig
from revision_jax.data import frames as frames_module
from revision_jax.errors import UserError

MAX_ASPECT = 200  # longer pictures are refused


@dataclass(frozen=True)
class Rules:
    """One processor's numbers. Pixels are of one image or frame after resizing, a token is f x f of them."""

    name: Literal["transformers", "original"] = "original"
    image_merge: int = 1  # m of an image; VideoLLaMA3's last training stage used 2
    video_merge: int = 2
    fps: float = 1.0  # frames looked at per second of video
    min_frames: int = 4  # transformers: of a video that has as many
    max_frames: int = 180
    image_pixels: tuple[int, int] = (56 * 56, 28 * 28 * 1280)  # transformers: bounds of an image
    video_pixels: tuple[int, int] = (128 * 28 * 28, 28 * 28 * 768)  # transformers: lower bound of a frame, upper bound of a video's frames together
    tokens: tuple[int, int] = (16, 16384)  # original: at least for an image or frame, at most for a sample (10240 in training)

    def __post_init__(self):
        if self.name not in ("transformers", "original"):
            raise ConfigError(f"rules.name: {self.name!r} is not one of transformers, original")
        for name in ("image_merge", "video_merge", "fps", "min_frames", "max_frames"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"rules.{name}: must be above 0, is {getattr(self, name)}")

    def merge(self, kind: str) -> int:
        return self.video_merge if kind == "video" else self.image_merge


class Shape(NamedTuple):
    """What is known of a picture before it is decoded: height and width in pixels, `frames` pictures of that size."""

    kind: Literal["image", "video"]
    height: int
    width: int
    frames: int = 1


class Prepared(NamedTuple):
    """An image (T = 1) or a video, ready for the encoder."""

    patches: Float32[np.ndarray, "T P C"]  # block-major, normalised
    grid: tuple[int, int]  # rows, columns of patches
    merge: int
    change: Float[np.ndarray, "T N"]  # of each merged token to the frame before, +inf in the first


# ---------------------------------------------------------------------------------------------------------------------------- size


def target_sizes(shapes: Sequence[Shape], rules: Rules, patch: int) -> list[tuple[int, int]]:
    """(height, width) in pixels to which each image or video of one sample is resized. Raises UserError for a picture that is too long or empty."""
    wrong = []
    for i, (kind, height, width, count) in enumerate(shapes):
        if min(height, width, count) < 1:
            wrong.append(f"{kind} {i} is empty ({count} of {height} x {width} pixels)")
        elif max(height, width) > MAX_ASPECT * min(height, width):
            wrong.append(f"{kind} {i} is {height} x {width} pixels, more than {MAX_ASPECT} times as long as wide")
    if wrong:
        raise UserError(f"pictures: {'; '.join(wrong)}")
    factors = [patch * rules.merge(shape.kind) for shape in shapes]
    if rules.name == "transformers":
        return [_transformers_size(shape, factor, rules) for shape, factor in zip(shapes, factors, strict=True)]
    return _original_sizes(shapes, factors, rules)


def _fit(height: int, width: int, factor: int, pixels: float, rounding) -> tuple[int, int]:
    """The sides at an area of about `pixels`, rounded to multiples of `factor`."""
    beta = math.sqrt(height * width / pixels)
    return rounding(height / beta / factor) * factor, rounding(width / beta / factor) * factor


def _rounded(height: int, width: int, factor: int) -> tuple[int, int]:
    return round(height / factor) * factor, round(width / factor) * factor


def _transformers_size(shape: Shape, factor: int, rules: Rules) -> tuple[int, int]:
    kind, height, width, count = shape
    low, high = rules.video_pixels if kind == "video" else rules.image_pixels
    high //= count
    size = _rounded(height, width, factor)
    if size[0] * size[1] > high:
        fitted = _fit(height, width, factor, high, math.floor)
        return max(factor, fitted[0]), max(factor, fitted[1])
    if size[0] * size[1] < low:
        beta = math.sqrt(low / (height * width))  # not `_fit`: a product rounds up elsewhere than a quotient
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return size


def _original_sizes(shapes: Sequence[Shape], factors: Sequence[int], rules: Rules) -> list[tuple[int, int]]:
    low, high = rules.tokens
    if len(set(factors)) > 1:  # images and videos of unlike merge: the budget is shared by tokens, and there is no lower bound
        total = sum(s.frames * math.ceil(s.height / f) * math.ceil(s.width / f) for s, f in zip(shapes, factors, strict=True))
        beta = math.sqrt(total / high) if total > high else None
        sizes = [
            _rounded(s.height, s.width, f) if beta is None else (math.floor(s.height / beta / f) * f, math.floor(s.width / beta / f) * f)
            for s, f in zip(shapes, factors, strict=True)
        ]
        # The original lets a side become 0 and fails; one block is the least a picture can have.
        return [(max(f, height), max(f, width)) for (height, width), f in zip(sizes, factors, strict=True)]
    sizes = []
    for (_, height, width, _), factor in zip(shapes, factors, strict=True):
        share = high * factor * factor // sum(shape.frames for shape in shapes)
        least = low * factor * factor
        size = _rounded(height, width, factor)
        if size[0] * size[1] > share:
            size = _fit(height, width, factor, share, math.floor)
        if size[0] * size[1] < least:
            beta = math.sqrt(least / (height * width))
            size = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
        sizes.append(size)
    return sizes


def token_counts(shapes: Sequence[Shape], rules: Rules, patch: int) -> list[int]:
    """Merged tokens of each image or video of one sample, before pruning."""
    sides = [patch * rules.merge(shape.kind) for shape in shapes]
    sizes = target_sizes(shapes, rules, patch)
    return [shape.frames * (h // side) * (w // side) for shape, (h, w), side in zip(shapes, sizes, sides, strict=True)]


# -------------------------------------------------------------------------------------------------------------------------- frames


def sample_frames(
    total: int, video_fps: float, rules: Rules, times: Float64[np.ndarray, " n"] | None = None, end_s: float | None = None
) -> tuple[Int64[np.ndarray, " T"], Float64[np.ndarray, " T"]]:
    """Which of a video's frames are looked at, and the seconds that the prompt says of them: (indices, timestamps).

    total: frames of the video; video_fps: its average rate. The original's rule works on the frames' own times (seconds, rising; evenly spaced from 0 if not
    given) and on the end of the last frame; transformers' on numbers and the average rate alone, so that its timestamps drift where frames
    are not evenly spaced. Raises UserError for a video without frames.

    transformers: floor(k total / n) in whole numbers. (Its own float32 arithmetic picks one frame later in rare cases past 65,536 frames, and for some n one
    frame more than there is.) original: slot k shows the last frame before (k + 1) / fps, as ffmpeg's filter does when it rounds times down, and is
    said to be at k / fps. A video that ends before its first slot is full shows its first frame.
    """
    if total < 1 or video_fps <= 0:
        raise UserError(f"video: has {total} frames at {video_fps} frames per second")
    if rules.name == "transformers":
        count = min(max(total / video_fps * rules.fps, rules.min_frames), rules.max_frames, total)
        count = max(1, math.floor(count))
        indices = np.arange(count, dtype=np.int64) * total // count
        return indices, indices / video_fps
    times = np.arange(total) / video_fps if times is None else np.asarray(times, np.float64)
    end_s = times[-1] + 1.0 / video_fps if end_s is None else end_s
    slots = np.floor(times * rules.fps + 1e-9).astype(np.int64)
    stop = math.floor(end_s * rules.fps + 1e-9)
    ticks = np.arange(slots[0], max(stop, slots[0] + 1))
    indices = np.searchsorted(slots, ticks, side="right") - 1 if stop > slots[0] else np.zeros(1, np.int64)
    stamps = times[0] + np.arange(len(ticks)) / rules.fps
    if len(ticks) > rules.max_frames:
        kept = np.linspace(0, len(ticks) - 1, rules.max_frames, dtype=int)
        indices, stamps = indices[kept], stamps[kept]
    return indices.astype(np.int64), stamps


# ------------------------------------------------------------------------------------------------------------------------- patches


def read_image(path: str | os.PathLike, rules: Rules) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB. transformers turns it as its EXIF tag says, the original does not. Raises UserError if it cannot be read."""
    try:
        with Image.open(path) as image:
            if rules.name == "transformers":
                image = ImageOps.exif_transpose(image)
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise UserError(f"{path}: not readable as an image ({error})") from error


def resize_video(frames: UInt8[np.ndarray, "T h w 3"], height: int, width: int) -> UInt8[np.ndarray, "T height width 3"]:
    """PIL's antialiased bicubic along the rows, then along the columns (see above)."""
    if frames.shape[1:3] == (height, width):
        return frames
    return frames_module.resize(frames_module.resize(frames, frames.shape[1], width), height, width)


def prepare(frames: UInt8[np.ndarray, "T h w 3"], size: tuple[int, int], kind: Literal["image", "video"], rules: Rules, vision: VisionConfig) -> Prepared:
    """Resizes, normalises and cuts the frames of one image or video. `size` is one of `target_sizes`; patch, mean and std are the encoder's."""
    merge = rules.merge(kind)
    resized = resize_video(frames, *size) if kind == "video" else frames_module.resize(frames, *size)
    cut = dataclasses.replace(vision, merge=merge, grids=((merge, merge),))
    patches = frames_module.encoder_patches(resized, cut)
    change = frames_module.token_change(resized, vision.patch, merge, std=vision.std)
    return Prepared(patches, (size[0] // vision.patch, size[1] // vision.patch), merge, change)


def kept_tokens(change: Float[np.ndarray, "T N"], pruner: PrunerConfig) -> Bool[np.ndarray, "T N"]:
    """DiffFP's mask as released: tokens that changed by more than the threshold; of a frame with fewer than `min_tokens` its first ones as well.

    `change` as in `Prepared`, +inf for the first frame, so that it is kept whole. For `PrunerConfig.keep="last"` see models/pruner.py.
    """
    kept = change > pruner.threshold
    few = kept.sum(axis=1, keepdims=True) < pruner.min_tokens
    return kept | (few & (np.arange(kept.shape[1]) < pruner.min_tokens))


# ---------------------------------------------------------------------------------------------------------------------------- text


def timestamp_text(seconds: float, rules: Rules) -> str:
    """What stands before a frame's tokens: "Time 12.5s:". Halves of a tenth round as the number in memory does; the original multiplies first."""
    return f"Time {np.round(np.float64(seconds), 1) if rules.name == 'original' else float(seconds):.1f}s:"


def video_text(timestamps: Sequence[float], counts: Sequence[int], rules: Rules, token: str = "<|video_pad|>") -> str:
    """A video's part of the prompt: each frame's time and as many placeholders as it keeps, joined by commas."""
    return ",".join(timestamp_text(seconds, rules) + token * int(count) for seconds, count in zip(timestamps, counts, strict=True))


# ------------------------------------------------------------------------------------------------------------ a checkpoint's own rules

PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def read_processors(directory: str | os.PathLike) -> tuple[dict, dict]:
    """(settings of the image processor, of the video processor) in a checkpoint's directory, {} where there are none. Raises UserError."""
    found = {}
    for name in PROCESSOR_FILES:
        path = Path(directory) / name
        if path.is_file():
            try:
                found[name] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise UserError(f"{path}: not readable as JSON ({error})") from error
            if not isinstance(found[name], dict):
                raise UserError(f"{path}: must hold a JSON object")
    image, video, both = (found.get(name, {}) for name in PROCESSOR_FILES)
    return {**both, **both.get("image_processor", {}), **image}, {**both.get("video_processor", {}), **video}


def read_rules(directory: str | os.PathLike, default: Rules = Rules()) -> Rules:
    """The rules with which a checkpoint was released, as far as its processor files say; `default` for the rest. Raises UserError."""
    image, video = read_processors(directory)
    values: dict = {}
    if "min_tokens" in image or "max_tokens" in image:
        values = {"name": "original", "tokens": (image.get("min_tokens", default.tokens[0]), image.get("max_tokens", default.tokens[1]))}
        known = ("image_merge", "image_merge_size"), ("video_merge", "video_merge_size"), ("fps", "fps"), ("max_frames", "max_frames")
        values |= {ours: image[theirs] for ours, theirs in known if image.get(theirs) is not None}
    elif image or video:
        values["name"] = "transformers"
        for name, settings in (("image", image), ("video", video)):
            bounds = settings.get("size") or {}
            standard = getattr(default, f"{name}_pixels")
            values[f"{name}_pixels"] = tuple(
                settings.get(old) or bounds.get(new) or usual
                for old, new, usual in (("min_pixels", "shortest_edge", standard[0]), ("max_pixels", "longest_edge", standard[1]))
            )
            if settings.get("merge_size"):
                values[f"{name}_merge"] = settings["merge_size"]
        values |= {name: video[name] for name in ("fps", "min_frames", "max_frames") if video.get(name) is not None}
    return dataclasses.replace(default, **values)
