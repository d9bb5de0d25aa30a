"""Frames on the host: resize, normalise, cut into patches, and how much each token changed. NumPy and PIL.

Patch order is VideoLLaMA3's "block-major": merge blocks in row-major order, then the m x m patches of a block in row-major order; a patch is
flattened channel-first, (3, p, p). A merged token is one block, so tokens are in row-major order of the (rows / m, columns / m) grid.
Lower-case h, w are pixels; P = rows * columns patches, N = P / m^2 merged tokens.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Num, UInt8
from PIL import Image

from revision_jax.config import VisionConfig


def resize(frames: UInt8[np.ndarray, "T h w 3"], height: int, width: int) -> UInt8[np.ndarray, "T height width 3"]:
    """Resizes by PIL's antialiased bicubic, as the released processors do. Frames of the wanted size come back as they are."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        resized[index] = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return resized


def normalise(frames: UInt8[np.ndarray, "T h w 3"], mean: tuple[float, float, float], std: tuple[float, float, float]) -> Float32[np.ndarray, "T h w 3"]:
    """(pixel / 255 - mean) / std by channel, as one multiply and one add in float32."""
    std = np.asarray(std, np.float32)
    normalised = frames.astype(np.float32)
    normalised *= 1.0 / (255.0 * std)
    normalised -= np.asarray(mean, np.float32) / std
    return normalised


def patchify(frames: Num[np.ndarray, "T h w 3"], patch: int, merge: int) -> Float32[np.ndarray, "T P C"]:
    """Cuts frames into flattened patches, C = 3 * patch^2, in the order described above. Values are not changed: normalise first.

    Raises ValueError if height or width does not divide by patch * merge.
    """
    return cut(frames, patch, merge).astype(np.float32, copy=False)


def unpatchify(patches: Num[np.ndarray, "T P C"], grid: tuple[int, int], patch: int, merge: int) -> Num[np.ndarray, "T h w 3"]:
    """The inverse of `patchify`, for a grid of (rows, columns) patches; for pictures and tests."""
    (rows, cols), m, p = grid, merge, patch
    blocks = patches.reshape(len(patches), rows // m, cols // m, m, m, 3, p, p).transpose(0, 1, 3, 6, 2, 4, 7, 5)
    return np.ascontiguousarray(blocks).reshape(len(patches), rows * p, cols * p, 3)


def encoder_patches(frames: UInt8[np.ndarray, "T h w 3"], config: VisionConfig) -> Float32[np.ndarray, "T P C"]:
    """Normalised patches, ready for the encoder: `patchify(normalise(frames))`, with the bytes moved before they become floats (twice as fast)."""
    patches = cut(frames, config.patch, config.merge)
    by_channel = patches.reshape(*patches.shape[:2], 3, -1)
    std = np.asarray(config.std, np.float32)[:, None]
    normalised = np.multiply(by_channel, 1.0 / (255.0 * std), dtype=np.float32)
    normalised -= np.asarray(config.mean, np.float32)[:, None] / std
    return normalised.reshape(patches.shape)


def positions(grid: tuple[int, int], merge: int) -> tuple[Int32[np.ndarray, "P"], Int32[np.ndarray, "P"]]:
    """Row and column of each patch of a (rows, columns) grid, in patch order."""
    (rows, cols), m = grid, merge
    row, col = np.meshgrid(np.arange(rows, dtype=np.int32), np.arange(cols, dtype=np.int32), indexing="ij")
    order = [array.reshape(rows // m, m, cols // m, m).transpose(0, 2, 1, 3).reshape(-1) for array in (row, col)]
    return order[0], order[1]


def choose_grid(height: int, width: int, config: VisionConfig) -> tuple[int, int]:
    """The (rows, columns) bucket for frames of height x width pixels: the nearest aspect ratio, and among equals the largest that needs no enlargement.

    Where every bucket needs enlargement, the smallest of the equals.
    """
    def cost(grid: tuple[int, int]) -> tuple[float, int, int]:
        rows, cols = grid
        stretch = abs(math.log((rows / cols) / (height / width)))
        enlarged = rows * config.patch > height or cols * config.patch > width
        area = rows * cols
        return round(stretch, 6), int(enlarged), area if enlarged else -area

    return min(config.grids, key=cost)


def content_grid(height: int, width: int, grid: tuple[int, int], merge: int) -> tuple[int, int]:
    """The part (rows, columns) of a bucket that a frame of height x width pixels fills at its own aspect ratio, both multiples of `merge`."""
    rows, cols = grid
    scale = min(rows / height, cols / width)
    fitted = (max(1, round(size * scale / merge)) * merge for size in (height, width))
    return tuple(min(size, bound) for size, bound in zip(fitted, grid, strict=True))


def letterbox(
    frames: UInt8[np.ndarray, "T h w 3"], grid: tuple[int, int], patch: int, merge: int
) -> tuple[UInt8[np.ndarray, "T H W 3"], Bool[np.ndarray, "P"]]:
    """Resizes into the upper left part of a bucket, aspect ratio kept; the rest is zero. Returns frames and which patches hold picture."""
    content = content_grid(frames.shape[1], frames.shape[2], grid, merge)
    boxed = np.zeros((len(frames), grid[0] * patch, grid[1] * patch, 3), np.uint8)
    boxed[:, : content[0] * patch, : content[1] * patch] = resize(frames, content[0] * patch, content[1] * patch)
    rows, cols = positions(grid, merge)
    return boxed, (rows < content[0]) & (cols < content[1])


def token_change(
    frames: UInt8[np.ndarray, "T h w 3"], patch: int, merge: int, previous: UInt8[np.ndarray, "h w 3"] | None = None,
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Float[np.ndarray, "T N"]:
    """Change of each merged token to the frame before, in DiffFP's unit: mean |difference| of the token's normalised pixels, times 255.

    The first frame is compared with `previous`; without one its change is +inf (it is kept whole). float32. The sums are integers, so a comparison with
    the threshold is exact whatever the number format of the processor. Source: `video_llama_3` image processor; unit in `PrunerConfig.threshold`.
    Raises ValueError if height or width does not divide by patch * merge.
    """
    rows, cols = _grid(frames, patch, merge)
    side, count = patch * merge, len(frames)
    change = np.full((count, (rows // merge) * (cols // merge)), np.inf, np.float32)
    weight = 1.0 / (np.asarray(std, np.float64) * 3 * side * side)
    before = frames[:0] if previous is None else previous[None]
    first = 1 if previous is None else 0
    step = max(1, 4_000_000 // max(1, frames[:1].nbytes))  # a few MB at a time stay in the cache
    for start in range(first, count, step):
        now = frames[start : start + step]
        then = frames[start - 1 : start - 1 + len(now)] if start else np.concatenate([before, frames[: len(now) - 1]])
        difference = np.maximum(now, then)
        difference -= np.minimum(now, then)
        lines = difference.reshape(len(now), rows // merge, side, -1).sum(axis=2, dtype=np.uint16 if side <= 257 else np.uint32)
        sums = lines.reshape(len(now), rows // merge, cols // merge, side, 3).sum(axis=3, dtype=np.uint32)
        change[start : start + step] = (sums @ weight).reshape(len(now), -1)
    return change


def _grid(frames: np.ndarray, patch: int, merge: int) -> tuple[int, int]:
    """(rows, columns) of patches; raises ValueError where the size does not divide."""
    height, width = frames.shape[1:3]
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"frames of {height} x {width} pixels do not divide into blocks of {merge} x {merge} patches of {patch} pixels")
    return height // patch, width // patch


def cut(frames: np.ndarray, patch: int, merge: int) -> np.ndarray:
    """`patchify` in the frames' own dtype: bytes stay bytes."""
    (rows, cols), m, p = _grid(frames, patch, merge), merge, patch
    blocks = frames.reshape(len(frames), rows // m, m, p, cols // m, m, p, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    return np.ascontiguousarray(blocks).reshape(len(frames), rows * cols, 3 * p * p)
