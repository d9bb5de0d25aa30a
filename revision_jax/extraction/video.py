"""Video to feature store: every frame at the wanted rate goes through the vision encoder once. Used by answering and by training alike.

Memory is bounded by a few chunks of frames, whatever the video's length; the device sees one static shape. Frames are decoded, resized and
measured in a thread while the chunk before is encoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float16, UInt8

from revision_jax.config import ExperimentConfig, VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data import long_video
from revision_jax.data import video as host_video
from revision_jax.data.ahead import ahead
from revision_jax.data.feature_parts import ResumableWriter
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore
from revision_jax.models import revision
from revision_jax.stored_programs import StoredProgram

CHUNK = 64  # frames of one device call


def encoder_identity(config: ExperimentConfig, params: dict, encoder: str = "vision") -> str:
    """What made the features: a hash of the encoder's config and of its weights in float16 (the precision they are shipped in)."""
    digest = hashlib.blake2b(json.dumps(dataclasses.asdict(config.encoder(encoder)), sort_keys=True).encode(), digest_size=12)
    parts = encoder_params(params, encoder)
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(parts), key=lambda item: jax.tree_util.keystr(item[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf, np.float16).tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def image_program(config: ExperimentConfig, encoder: str) -> StoredProgram:
    """The compiled encoder: (its parameters, uint8 images [CHUNK h w 3]) to {"frame": [CHUNK E], "tokens": [CHUNK N E]} float16."""

    def encode(params: dict, images: jax.Array) -> dict:
        out = revision.encode_images(config, params, images, encoder=encoder)
        return {name: value.astype(jnp.float16) for name, value in out.items()}

    return StoredProgram(encode, f"encode/{encoder}", json.dumps(dataclasses.asdict(config.encoder(encoder)), sort_keys=True))


def image_shapes(config: ExperimentConfig, params: dict, encoder: str = "vision") -> list[tuple]:
    """The arguments of an encoder's image program with shapes in place of images, one for each grid. All encoders' programs: `patches.encoder_programs`."""
    vision, own = config.encoder(encoder), encoder_params(params, encoder)
    sizes = [(CHUNK, rows * vision.patch, columns * vision.patch, 3) for rows, columns in vision.grids]
    return [(own, jax.ShapeDtypeStruct(size, jnp.uint8)) for size in sizes]


def encode_chunk(
    config: ExperimentConfig, params: dict, images: UInt8[np.ndarray, "T h w 3"], encoder: str = "vision"
) -> dict[str, Float16[np.ndarray, "..."]]:
    """Features of at most CHUNK frames of a grid bucket's size: {"frame": [T E], "tokens": [T N E]} float16, computed in one static shape."""
    count = len(images)
    padded = np.zeros((CHUNK, *images.shape[1:]), np.uint8)
    padded[:count] = images
    out = image_program(config, encoder)(encoder_params(params, encoder), padded)
    return {name: np.asarray(value)[:count] for name, value in out.items()}


def encoder_params(params: dict, encoder: str) -> dict:
    """The part of the parameters that an encoder reads."""
    names = ("vision", "projection") if encoder == "vision" else (encoder,)
    return {name: params[name] for name in names if name in params}


def frame_size(config: ExperimentConfig, info: host_video.VideoInfo, encoder: str = "vision") -> tuple[int, int]:
    """(height, width) in pixels that frames are resized to: the grid bucket of the nearest aspect ratio."""
    vision = config.encoder(encoder)
    rows, columns = host_frames.choose_grid(info.height, info.width, vision)
    return rows * vision.patch, columns * vision.patch


def features_of(
    config: ExperimentConfig, params: dict, chunks: Iterator[tuple[np.ndarray, np.ndarray]], encoder: str = "vision", previous: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(times, frames) chunks to (times, {"frame", "tokens", "change"}), `change` the pruner's measure against the frame before (`previous` at first)."""
    with contextlib.closing(ahead(_measured(config.encoder(encoder), chunks, previous))) as measured:
        for times, images, change in measured:
            yield times, {**encode_chunk(config, params, images, encoder), "change": change}


def _measured(
    vision: VisionConfig, chunks: Iterator[tuple[np.ndarray, np.ndarray]], previous: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(times, frames, how much each of their tokens changed)."""
    for times, images in chunks:
        change = host_frames.token_change(images, vision.patch, vision.merge, previous, vision.std)
        previous = images[-1]
        yield times, images, np.minimum(change, 60000.0).astype(np.float16)


def extract(
    video: str | Path,
    config: ExperimentConfig,
    params: dict,
    store: str | Path,
    *,
    rate: float | None = None,
    encoder: str = "vision",
    identity: str | None = None,
    resume: bool = False,
    decoders: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> FeatureStore:
    """Encodes a whole video at `rate` frames per second (default: the config's) into `store`, atomically. Returns the opened store.

    identity: `encoder_identity`, where the caller knows it. resume: what is finished outlives a kill, and the next call with the same arguments goes on
    behind it, to the same bytes (`data/feature_parts.py`). decoders: processes that decode (`data/long_video.py`). progress(seconds done, seconds in all).
    Raises UserError for a video that cannot be read; one that ends early gives what could be read, with the warning in the header.
    """
    rate = rate or config.grounding.rate
    info = host_video.probe(video)
    vision = config.encoder(encoder)
    grid = host_frames.choose_grid(info.height, info.width, vision)
    tokens = (grid[0] // vision.merge) * (grid[1] // vision.merge)
    arrays = {
        "frame": ((vision.output,), "float16"),
        "tokens": ((tokens, vision.output), "float16"),
        "change": ((tokens,), "float16"),
    }
    identity = identity or encoder_identity(config, params, encoder)
    header = FeatureHeader(
        video_hash=host_video.content_hash(video), encoder=identity, rate=rate, duration_s=info.duration_s, arrays=arrays, fps=info.fps
    )  # fmt: skip
    options = {"size": frame_size(config, info, encoder), "chunk": CHUNK}
    with ResumableWriter(store, header) if resume else FeatureWriter(store, header) as writer:
        if writer.complete:
            writer.close()
        else:
            reader, chunks, previous = _behind(video, rate, writer.frames, writer.damaged, {**options, "decoders": decoders}, progress)
            shown = ((chunk.times, chunk.frames) for chunk in chunks)
            with contextlib.closing(chunks), contextlib.closing(features_of(config, params, shown, encoder, previous)) as features:
                for times, values in features:
                    writer.damaged = reader.failures > 0  # maybe of a chunk that is decoded but not encoded yet: too soon does no harm
                    writer.append(times, values)
            writer.close(warnings=reader.warnings)
    return FeatureStore(store)


def _behind(
    video: str | Path, rate: float, first: int, damaged: bool, options: dict[str, Any], progress: Callable[[float, float], None] | None
) -> tuple[host_video.FrameReader, Iterator[host_video.FrameChunk], np.ndarray | None]:
    """A reader of the video, its chunks from frame `first` (a multiple of CHUNK) on, and the picture before them."""
    if damaged or first == 0:
        reader = long_video.read_frames(video, rate, progress=progress, **options)
        chunks, previous = iter(reader), None
        for chunk in itertools.islice(chunks, first // CHUNK):
            previous = chunk.frames[-1]
        return reader, chunks, previous
    start_s = first / rate
    before = long_video.read_frames(video, rate, start_s=(first - 1) / rate, end_s=start_s, **options)
    on = progress and (lambda done, left: progress(start_s + done, start_s + left))
    reader = long_video.read_frames(video, rate, start_s=start_s, progress=on, **options)
    return reader, iter(reader), next(iter(before)).frames[-1]
