"""Video to feature store: every frame at the wanted rate goes through the vision encoder once. Used by answering and by training alike.

Memory is bounded by one chunk of frames, whatever the video's length; the device sees one static shape.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, UInt8

from revision_jax.config import ExperimentConfig
from revision_jax.data import frames as host_frames
from revision_jax.data import video as host_video
from revision_jax.data.features import FeatureHeader, FeatureStore, FeatureWriter
from revision_jax.models import revision

CHUNK = 64  # frames of one device call


def encoder_identity(config: ExperimentConfig, params: dict) -> str:
    """What made the features: a hash of the vision config and of its weights in float16 (the precision they are shipped in)."""
    digest = hashlib.blake2b(json.dumps(dataclasses.asdict(config.vision), sort_keys=True).encode(), digest_size=12)
    parts = {name: params[name] for name in ("vision", "projection") if name in params}
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(parts), key=lambda item: jax.tree_util.keystr(item[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float16).tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _encode(config: ExperimentConfig) -> Callable[[dict, Any], dict]:
    def encode(params: dict, images: jax.Array) -> dict:
        out = revision.encode_images(config, params, images)
        return {name: value.astype(jnp.float16) for name, value in out.items()}

    return jax.jit(encode)


def encode_chunk(config: ExperimentConfig, params: dict, images: UInt8[np.ndarray, "T h w 3"]) -> dict[str, Float16[np.ndarray, "..."]]:
    """Features of at most CHUNK frames of a grid bucket's size: {"frame": [T E], "tokens": [T N E]} float16, computed in one static shape."""
    count = len(images)
    padded = np.zeros((CHUNK, *images.shape[1:]), np.uint8)
    padded[:count] = images
    out = _encode(config)(_encoder_params(params), padded)
    return {name: np.asarray(value)[:count] for name, value in out.items()}


def _encoder_params(params: dict) -> dict:
    return {name: params[name] for name in ("vision", "projection") if name in params}


def frame_size(config: ExperimentConfig, info: host_video.VideoInfo) -> tuple[int, int]:
    """(height, width) in pixels that frames are resized to: the grid bucket of the nearest aspect ratio."""
    rows, columns = host_frames.choose_grid(info.height, info.width, config.vision)
    return rows * config.vision.patch, columns * config.vision.patch


def features_of(config: ExperimentConfig, params: dict, chunks: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(times, frames) chunks to (times, {"frame", "tokens", "change"}), `change` being the pruner's measure against the frame before."""
    vision, previous = config.vision, None
    for times, images in chunks:
        change = host_frames.token_change(images, vision.patch, vision.merge, previous, vision.std)
        previous = images[-1]
        arrays = encode_chunk(config, params, images)
        yield times, {**arrays, "change": np.minimum(change, 60000.0).astype(np.float16)}


def extract(
    video: str | Path,
    config: ExperimentConfig,
    params: dict,
    store: str | Path,
    *,
    rate: float | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> FeatureStore:
    """Encodes a whole video at `rate` frames per second (default: the config's) into `store`, atomically. Returns the opened store.

    Raises UserError for a video that cannot be read; one that ends early gives what could be read, with the warning in the header.
    """
    rate = rate or config.grounding.rate
    info = host_video.probe(video)
    reader = host_video.read_frames(video, rate, size=frame_size(config, info), chunk=CHUNK, progress=progress)
    grid = host_frames.choose_grid(info.height, info.width, config.vision)
    tokens = (grid[0] // config.vision.merge) * (grid[1] // config.vision.merge)
    arrays = {
        "frame": ((config.vision.output,), "float16"),
        "tokens": ((tokens, config.vision.output), "float16"),
        "change": ((tokens,), "float16"),
    }
    header = FeatureHeader(
        video_hash=host_video.content_hash(video), encoder=encoder_identity(config, params), rate=rate, duration_s=info.duration_s, arrays=arrays, fps=info.fps
    )
    with FeatureWriter(store, header) as writer:
        for times, values in features_of(config, params, ((chunk.times, chunk.frames) for chunk in reader)):
            writer.append(times, values)
        writer.close(warnings=reader.warnings)
    return FeatureStore(store)
