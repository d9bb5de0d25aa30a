"""The dual encoder's similarity of every frame of a film to a question: plain frame retrieval's whole signal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from revision_jax.errors import UserError
from revision_jax.grounding.programs import Programs, Question
from revision_jax.grounding.source import Source

CHUNK = 1024  # frames of one device call


def frame_similarity(programs: Programs, source: Source, questions: Sequence[Question]) -> Float[np.ndarray, "Q T"]:
    """Similarity in [0, 1] of all T stored frames, for each question; frame i is the tick i / rate. Reads the film once.

    Raises UserError for a model whose image and text towers share no space, and for a store of text features that holds tokens alone.
    """
    if programs.queries is not None and "vectors" not in programs.queries.arrays:
        raise UserError(f"{programs.queries.path}: holds no vectors of the questions, only tokens; leave it out, and the text tower makes them")
    if not programs.has_similarity:
        raise UserError("vision.projection: frames and questions share no space in this model, so there is no similarity to search by")
    out = np.zeros((len(questions), source.frames), np.float32)
    for first in range(0, source.frames, CHUNK):
        stop = min(first + CHUNK, source.frames)
        _, arrays = source.read_frames(first, stop, programs.names)
        padded = {name: np.concatenate([x, np.zeros((CHUNK - len(x), *x.shape[1:]), x.dtype)]) for name, x in arrays.items()}
        for row, question in enumerate(questions):
            # The whole question's vector alone; the leading axis stands for the frames.
            made = programs.run("frame levels", "", padded["frame"], padded.get("tokens"), question.vectors[None, :1])
            out[row, first:stop] = np.asarray(made)[: stop - first]
    return out
