"""The arrays of one packed row: conversations side by side, their pictures in the encoder's slots. Static shapes by `RowConfig`; what is padded is zero.

    ids, segments, positions   int32 [S]    segment 1, 2, .. for each conversation, 0 = padding; positions begin anew in each
    visual                     int32 [S]    which of the N visual tokens stands here, -1 = a token of text
    parts                      int32 [N 4]  the patches whose mean is a visual token, counted through all slots of the row
    label_slots, label_ids     int32 [L]    slots of the sequence and the tokens that they are to predict; label_mask bool [L]
    pixels_k                   uint8 [c P C]   slots of the k-th size: patches as bytes, block-major, channel-first
    rows_k, columns_k          int32 [c P]  of a patch in its own picture
    pictures_k                 int32 [c P]  1, 2, .. for each picture of a slot, 0 = padding

Merging patches to tokens, dropping pruned ones and bringing them to their places is one gather: `parts`. So pictures of other merge sizes share a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from revision_jax.config import RowConfig, VisionConfig
from revision_jax.data import frames as host_frames
from revision_jax.data.conversation import Sample, Shot, centre
from revision_jax.data.packing import Run, placed

Arrays = dict[str, np.ndarray]


def empty_row(shape: RowConfig, channels: int) -> Arrays:
    """A row that holds nothing. channels: C, values of a patch."""
    tokens = {name: np.zeros(shape.length, np.int32) for name in ("ids", "segments", "positions")}
    labels = {"label_slots": np.zeros(shape.labels, np.int32), "label_ids": np.zeros(shape.labels, np.int32), "label_mask": np.zeros(shape.labels, bool)}
    row = {**tokens, **labels, "visual": np.full(shape.length, -1, np.int32)}
    if shape.visual:
        row["parts"] = np.zeros((shape.visual, 4), np.int32)
    for k, size in enumerate(shape.slots):
        row |= {f"{name}_{k}": np.zeros(size, np.int32) for name in ("rows", "columns", "pictures")}
        row[f"pixels_{k}"] = np.zeros((*size, channels), np.uint8)
    return row


def packed_row(samples: Sequence[Sample], planned: Sequence[Sequence[Run]], shape: RowConfig, vision: VisionConfig, before_encoder: bool = False) -> Arrays:
    """The row of some conversations. planned: the runs of each, as its lengths say: they decide where pictures lie."""
    row = empty_row(shape, 3 * vision.patch**2)
    at = shown = learnt = 0
    slots = [(k, slot) for k, (count, _) in enumerate(shape.slots) for slot in range(count)]
    before = np.concatenate([[0], np.cumsum([size for count, size in shape.slots for _ in range(count)])])  # patches in earlier slots
    taken = [0] * len(slots)  # pictures of each slot
    for number, (sample, stretches) in enumerate(zip(samples, placed(planned, shape), strict=True), start=1):
        size = len(sample.ids)
        here = slice(at, at + size)
        row["ids"][here], row["segments"][here], row["positions"][here] = sample.ids, number, np.arange(size)
        labels = np.flatnonzero(sample.learnt)
        into = slice(learnt, learnt + len(labels))
        row["label_slots"][into], row["label_ids"][into], row["label_mask"][into] = at + labels - 1, sample.ids[labels], True
        learnt += len(labels)
        pictures = [picture for shot in sample.shots for picture in _pictures(shot, vision.patch, before_encoder)]
        where = np.zeros(len(pictures), np.int64)  # of each picture's first patch, counted through all slots
        following = np.cumsum([0, *(count for count, _ in planned[number - 1])])  # the next picture of each run
        for run, place, offset, count in stretches:
            k, slot = slots[place]
            for picture in range(following[run], following[run] + count):
                patches, rows, columns, _ = pictures[picture]
                inside = slice(offset, offset + len(patches))
                taken[place] += 1
                row[f"pixels_{k}"][slot, inside], row[f"pictures_{k}"][slot, inside] = patches, taken[place]
                row[f"rows_{k}"][slot, inside], row[f"columns_{k}"][slot, inside] = rows, columns
                where[picture] = before[place] + offset
                offset += len(patches)
            following[run] += count
        parts = [start + own for start, (*_, own) in zip(where, pictures, strict=True)]
        count = int(sample.places.sum())
        if count:
            row["parts"][shown : shown + count] = np.concatenate(parts)
            row["visual"][here][sample.places] = np.arange(shown, shown + count)
        at, shown = at + size, shown + count
    return row


def _pictures(shot: Shot, patch: int, before_encoder: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each frame: the patches that the encoder sees [P C], their rows and columns [P], and the four patches of each kept token [N 4]."""
    (frames, keep), merge = shot
    square = merge * merge
    patches = host_frames.cut(frames, patch, merge)
    rows, columns = host_frames.positions((frames.shape[1] // patch, frames.shape[2] // patch), merge)
    found = []
    for own, kept in zip(patches, keep, strict=True):
        tokens = np.flatnonzero(kept)
        seen = np.repeat(kept, square) if before_encoder else slice(None)
        blocks = np.arange(len(tokens)) if before_encoder else tokens
        if before_encoder and not len(tokens):
            continue  # nothing of it is seen
        found.append((own[seen], rows[seen], columns[seen], (blocks[:, None] * square + centre(merge)).astype(np.int32)))
    return found
