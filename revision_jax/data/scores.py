"""Scores of windows by a checkpoint, in a file: what semi-hard negatives are drawn by. `launch.score` writes it.

A store of text features (`text_features.py`) whose "encoder" is the checkpoint's name and whose texts are pairs of a video and a question:

    "windows" [S, 2] f32    middle of a window in seconds, its score in [0, 1]; the best of the film, none of them overlapping a moment of the question
    "own" [1] f32           the best score of a window that shows a moment
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from revision_jax.data.prompts import clean_query
from revision_jax.data.text_features import TOKENS, TextFeatureStore, TextFeatureWriter
from revision_jax.errors import UserError

ARRAYS = {"windows": ((TOKENS, 2), "float32"), "own": ((1,), "float32")}


class Scored(NamedTuple):
    """What a checkpoint said about the windows of a film, for one question."""

    windows: Float32[np.ndarray, "S 2"]
    own: float


def write(path: str | Path, checkpoint: str, rows: Iterable[tuple[str, str, Scored]]) -> int:
    """Writes (video id, question, scores) rows, complete or not at all; returns how many. Raises StoreError where the file cannot be written."""
    with TextFeatureWriter(path, checkpoint, ARRAYS) as writer:
        for video, question, scored in rows:
            writer.add(_key(video, question), {"windows": scored.windows, "own": np.asarray([scored.own], np.float32)})
        return len(writer)


class Scores:
    """Reads such a file. Safe to share between threads; picklable."""

    def __init__(self, path: str | Path, checkpoint: str):
        """Raises UserError for a missing or damaged file, and for one of another checkpoint's scores."""
        self._store = TextFeatureStore(path)
        if set(self._store.arrays) != set(ARRAYS):
            raise UserError(f"{path}: holds no scores of windows but {', '.join(self._store.arrays)}; python -m launch.score writes them")
        if self._store.encoder != checkpoint:
            raise UserError(f"{path}: these scores are of the checkpoint {self._store.encoder!r}, not {checkpoint!r}; write them again with launch.score")

    def of(self, video: str, question: str) -> Scored | None:
        """The scores for a question about a video; None where it was not scored."""
        key = _key(video, question)
        if key not in self._store:
            return None
        found = self._store.read(key)
        return Scored(found["windows"], float(found["own"][0]))


def _key(video: str, question: str) -> str:
    return f"{video}\n{clean_query(question)}"
