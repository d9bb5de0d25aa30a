"""How well spans found match spans that are true: IoU, R@k, mIoU, average precision, one-to-one F1 and count accuracy.

Everything here is about one question. Spans are rows (start, end) in seconds; found spans come ranked, best first. A question whose answer
could not be read has no spans and scores 0 everywhere: it is never left out. Averages over questions are made in `figures.py`.

Defined answers: an IoU that lies on a threshold reaches it; spans that touch share nothing; a span of no length, or one that ends before it starts, has IoU 0
with everything; a span outside of the video is judged as it is (whoever makes spans keeps them inside).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

Spans = Float[np.ndarray, "_ 2"] | Iterable  # rows (start, end) in seconds: an array, or anything that can be made one
RECALL_RANKS = (1, 5, 10, 50, 100)  # of MAD's owners; VidChapters-7M's grounding, Charades-STA and ActivityNet Captions take some of these and of the next
RECALL_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)
PRECISION_IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # 0.5, 0.55 .. 0.95
PRECISION_SPANS = 10  # the first ones: what QVHighlights' owners look at
LENGTHS = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, float("inf"))}  # seconds of a true moment, the end included; theirs end at 150
F1_IOUS = (0.3, 0.5, 0.7)
EPSILON = 1e-9  # 0.3 of a 10 s span is 3 s, whatever the last bit of a float says


def as_spans(spans: Spans) -> Float[np.ndarray, "n 2"]:
    """Any sequence of (start, end) in seconds as float64; an empty one has shape (0, 2)."""
    return np.asarray(list(spans), dtype=np.float64).reshape(-1, 2)


def temporal_iou(first: Spans, second: Spans) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every span of `first` with every one of `second`, in [0, 1]; two empty spans have 0."""
    first, second = as_spans(first), as_spans(second)
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    both = np.maximum(end - start, 0.0)
    lengths = np.maximum(first[:, 1] - first[:, 0], 0.0)[:, None] + np.maximum(second[:, 1] - second[:, 0], 0.0)[None, :]
    union = lengths - both
    # Lengths too small to be squared out of zero (denormals) would divide to more than 1.
    return np.minimum(np.divide(both, union, out=np.zeros_like(both), where=union > 0), 1.0)


def best_iou(spans: Spans, truth: Spans) -> Float[np.ndarray, "n"]:
    """Of every found span, the IoU with the true moment it matches best."""
    spans, truth = as_spans(spans), as_spans(truth)
    if len(truth) == 0:
        return np.zeros(len(spans))
    return temporal_iou(spans, truth).max(axis=1)


def recall(spans: Spans, truth: Spans, rank: int, iou: float) -> float:
    """R`rank`@`iou` of one question: 1.0 when one of the first `rank` spans has at least `iou` with any true moment, else 0.0.

    Source: "R@n, IoU=m" of TALL (arXiv 1705.02101), as MAD (2112.00431) and the owners of QVHighlights (R1: the true moment of highest IoU) compute it.
    """
    return reached(best_iou(spans, truth), rank, iou)


def reached(matches: Float[np.ndarray, "n"], rank: int, iou: float) -> float:
    """`recall` of spans whose `best_iou` is known."""
    return float((matches[:rank] >= iou - EPSILON).any())


def top_iou(spans: Spans, truth: Spans) -> float:
    """IoU of the first span with the true moment it matches best; 0 without a span. Its mean over questions is mIoU."""
    matches = best_iou(spans, truth)
    return float(matches[0]) if len(matches) else 0.0


def hits(spans: Spans, truth: Spans, iou: float) -> Bool[np.ndarray, "n"]:
    """Which spans, taken in their order, claim a true moment nobody before them claimed (the best such with at least `iou`)."""
    overlap = temporal_iou(spans, truth)
    free = np.ones(overlap.shape[1], dtype=bool)
    found = np.zeros(overlap.shape[0], dtype=bool)
    for i, row in enumerate(overlap):
        row = np.where(free, row, -1.0)
        if row.size and row.max() >= iou - EPSILON:
            free[row.argmax()] = False
            found[i] = True
    return found


def average_precision(spans: Spans, truth: Spans, iou: float) -> float:
    """Area under the interpolated precision-recall curve of one question's ranked spans, as in QVHighlights and ActivityNet.

    In order of rank a span claims the true moment of highest IoU among those that are free. Source: ActivityNet's detection protocol, which the owners of
    QVHighlights (arXiv 2107.09609) apply to each question alone and average over questions.

    True moments (10, 20) and (50, 60); found, best first, (10, 20), (80, 90), (50, 60): precision is 1 at recall 1/2 and 2/3 at
    recall 1, so the area is 1/2 + 1/2 * 2/3 = 5/6.
    """
    spans, truth = as_spans(spans), as_spans(truth)
    if len(spans) == 0 or len(truth) == 0:
        return 0.0
    found = hits(spans, truth, iou)
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # interpolated: the best precision at this recall or a higher one
    return float(precision[found].sum() / len(truth))


def mean_average_precision(spans: Spans, truth: Spans) -> float:
    """`average_precision` of the first PRECISION_SPANS spans, averaged over IoU 0.5, 0.55 .. 0.95 (QVHighlights' mAP)."""
    return float(np.mean([average_precision(as_spans(spans)[:PRECISION_SPANS], truth, iou) for iou in PRECISION_IOUS]))


def of_length(truth: Spans, low: float, high: float) -> Float[np.ndarray, "k 2"]:
    """The true moments that last longer than `low` and at most `high` seconds. QVHighlights' mAP of a length class asks for these alone, of the questions
    that have any; the spans found stay as they are, so one that finds a moment of another length counts as wrong."""
    truth = as_spans(truth)
    lengths = truth[:, 1] - truth[:, 0]
    return truth[(lengths > low + EPSILON) & (lengths <= high + EPSILON)]


def matched(spans: Spans, truth: Spans, iou: float) -> int:
    """Pairs of a one-to-one matching with at least `iou` each, made greedily from the largest IoU down (order does not matter).

    Source: CoMET-Bench (arXiv 2606.15320). The largest matching there is may have more pairs, at most twice as many.
    """
    overlap = temporal_iou(spans, truth)
    count = 0
    while overlap.size and overlap.max() >= iou - EPSILON:
        i, j = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap = np.delete(np.delete(overlap, i, axis=0), j, axis=1)
        count += 1
    return count


def f1(spans: Spans, truth: Spans, iou: float) -> float:
    """F1@`iou` of one question: 2 * matched / (found + true); 1 where there is neither. `spans` are the accepted ones. Source: CoMET-Bench."""
    spans, truth = as_spans(spans), as_spans(truth)
    total = len(spans) + len(truth)
    return 2.0 * matched(spans, truth, iou) / total if total else 1.0


def temporal_f1(spans: Spans, truth: Spans) -> float:
    """tF1 of one question: `f1` averaged over IoU 0.3, 0.5, 0.7. Source: OMTG-Bench (arXiv 2606.06294)."""
    return float(np.mean([f1(spans, truth, iou) for iou in F1_IOUS]))
