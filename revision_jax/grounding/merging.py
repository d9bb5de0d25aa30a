"""Overlapping spans of one question made into few: non-maximum suppression, hard or soft. NumPy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def overlaps(span: Float[np.ndarray, "2"], others: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    """Intersection over union of one span (start, end) with others, in [0, 1]."""
    both = np.maximum(np.minimum(span[1], others[:, 1]) - np.maximum(span[0], others[:, 0]), 0.0)
    union = (span[1] - span[0]) + (others[:, 1] - others[:, 0]) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def nms(spans: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n"], iou: float) -> Int[np.ndarray, "k"]:
    """Indices of the spans that stay, best first: each drops all worse ones that overlap it by more than `iou`. Ties go to the earlier index."""
    order = list(np.argsort(-scores, kind="stable"))
    kept = []
    while order:
        best = order.pop(0)
        kept.append(best)
        if order:
            rest = np.asarray(order)
            order = list(rest[overlaps(spans[best], spans[rest]) <= iou])
    return np.asarray(kept, np.int64)


def accepted(
    spans: Float[np.ndarray, "n 2"], confidence: Float[np.ndarray, "n"], threshold: float, further: float | None = None
) -> Bool[np.ndarray, "n"]:
    """Which spans, best first, are answers: of at least `threshold`, and no better answer shares half of the shorter of the two or more. Once there is an
    answer, others need `further` (default: the same): whether there is any moment is one question, how many there are is another.

    The end of a moment, found once more beside the whole of it, overlaps it by too little to be merged away; it stays an alternative, but is no second answer.
    """
    result = np.zeros(len(spans), bool)
    for i, (start, end) in enumerate(spans):
        others = spans[:i][result[:i]]
        both = np.minimum(end, others[:, 1]) - np.maximum(start, others[:, 0])
        shorter = np.minimum(end - start, others[:, 1] - others[:, 0])
        least = further if further is not None and result.any() else threshold
        result[i] = confidence[i] >= least and not (both >= 0.5 * shorter).any()
    return result


def soft_nms(spans: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n"], iou: float) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """All spans, best first, and their scores lowered: each multiplies the scores of worse ones that overlap it by more than `iou` by 1 - overlap
    (linear soft-NMS, arXiv 1704.04503)."""
    left = list(range(len(scores)))
    scores = np.asarray(scores, np.float64).copy()
    order, final = [], []
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        order.append(best)
        final.append(scores[best])
        if left:
            rest = np.asarray(left)
            overlap = overlaps(spans[best], spans[rest])
            scores[rest] *= np.where(overlap > iou, 1.0 - overlap, 1.0)
    return np.asarray(order, np.int64), np.asarray(final)
