"""Our image and text towers over single images: the vectors that scores, clusters and neighbours are told from, and how well a caption fits.

Any checkpoint of this project whose towers share a space will do: CLIP or SigLIP as `launch.convert` turns them, or the tiny model that is shipped.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float16, UInt8

from revision_jax import checkpoint
from revision_jax.config import ExperimentConfig
from revision_jax.curation.pictures import Picture
from revision_jax.data import frames as host_frames
from revision_jax.data.prompts import Padded, encode_query
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.data.video import content_hash
from revision_jax.errors import UserError
from revision_jax.extraction import video as extraction
from revision_jax.extraction.jobs import load_encoder
from revision_jax.models import revision

PARTS = ("params/vision/", "params/projection/", "params/text/", "params/similarity/")
CAPTIONS = 64  # of one device call
Features = dict[str, Float16[np.ndarray, "..."]]  # of one image: "frame" [E]; "tokens" [N E] where the similarity reads them


def identity(folder: str | Path) -> str:
    """What makes the features and similarities: a hash of the checkpoint's files, 16 hex digits. Raises UserError where there is no checkpoint."""
    checkpoint.load_config(folder)
    folder = Path(folder)
    files = [folder / name for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TOKENIZER)]
    files += sorted((folder / checkpoint.TEXT_TOKENIZER).glob("*.json"))
    return hashlib.blake2b("".join(content_hash(file) for file in files).encode(), digest_size=8).hexdigest()


def width(folder: str | Path) -> int:
    """Length of the image vectors, from the checkpoint's config alone."""
    return checkpoint.load_config(folder).vision.output


class Towers:
    """The encoders of one checkpoint, on the device."""

    def __init__(self, folder: str | Path):
        """Raises UserError for a folder that holds no checkpoint, and for one without a text tower in the images' space."""
        folder = Path(folder)
        self.config, params = load_encoder(folder, PARTS)
        if self.config.text is None or self.config.vision.output != self.config.text.projection:
            raise UserError(f"{folder}: has no text tower that shares a space with its images; CLIP, SigLIP (launch.convert) and the tiny model have one")
        self.params = jax.device_put(params)
        text = folder / checkpoint.TEXT_TOKENIZER
        self.tokenizer = Tokenizer.load(text if text.is_dir() else folder)
        self.late = self.config.decoder.signal.similarity == "late"

    def fit(self, picture: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
        """The picture at the size that `features` reads: that of the grid of the nearest aspect ratio."""
        rows, columns = host_frames.choose_grid(picture.shape[0], picture.shape[1], self.config.vision)
        return host_frames.resize(picture[None], rows * self.config.vision.patch, columns * self.config.vision.patch)[0]

    def features(self, pictures: Sequence[Picture]) -> list[Features]:
        """Features of fitted pictures, in the space that the towers share, of any length."""
        made: list[Features] = [{}] * len(pictures)
        for size in sorted({picture.shape for picture in pictures}):
            members = [number for number, picture in enumerate(pictures) if picture.shape == size]
            for start in range(0, len(members), extraction.CHUNK):
                part = members[start : start + extraction.CHUNK]
                out = extraction.encode_chunk(self.config, self.params, np.stack([pictures[number] for number in part]))
                for row, number in enumerate(part):
                    made[number] = {name: out[name][row] for name in (("frame", "tokens") if self.late else ("frame",))}
        return made

    def caption_ids(self, caption: str) -> Padded:
        """A caption as the text tower reads it; the end of a long one is cut, as CLIP's users do. Raises UserError for one that holds a control token."""
        return encode_query(self.tokenizer, caption, self.config.grounding.query_len, self.config.text.suffix, cut=True)

    def similarity(self, features: Sequence[Features], captions: Sequence[Padded]) -> Float[np.ndarray, "n"]:
        """Probability in [0, 1] that each image shows what its caption (`caption_ids`) says, by `models.signal.similarity`; float32."""
        out = np.zeros(len(captions), np.float32)
        shapes = [one["tokens"].shape if self.late else () for one in features]  # a grid has a shape
        for shape in sorted(set(shapes)):
            members = [number for number, one in enumerate(shapes) if one == shape]
            for start in range(0, len(members), CAPTIONS):
                part = members[start : start + CAPTIONS]
                filled = part + part[:1] * (CAPTIONS - len(part))
                stack = lambda values: np.stack(list(values))
                arrays = {name: stack(features[number][name] for number in filled) for name in features[part[0]]}
                ids, mask = (stack(captions[number][kind] for number in filled) for kind in (0, 1))
                out[part] = np.asarray(_similarity(self.config)(self.params, arrays, ids, mask))[: len(part)]
        return out


@functools.lru_cache(maxsize=4)
def _similarity(config: ExperimentConfig) -> Callable[[dict, Any, Any, Any], jax.Array]:
    def similarity(params: dict, arrays: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        vectors = revision.encode_text(config, params, ids, mask)["vectors"][:, :1]  # the whole caption's, no phrases
        return revision.similarity(config, params, arrays["frame"], arrays.get("tokens"), vectors)[0][:, 0]

    return jax.jit(similarity)
