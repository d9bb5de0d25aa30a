"""Search apart from localisation: did the first level keep the right windows, and how good is the span where the window is given?

A true moment counts as found when the windows that survive the first level, taken together, show at least half of it: half is the least
from which a finer level can still reach IoU 0.5, the main figure. (One shared second would count as found what can no longer be answered
well; the whole moment would call lost what R1@0.5 accepts.)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from revision_jax.evaluation.moments import Spans, as_spans

COVERED = 0.5  # least share of a true moment that the surviving windows must show


def union(spans: Spans) -> Float[np.ndarray, "m 2"]:
    """The same seconds as disjoint spans in order of time."""
    merged: list[list[float]] = []
    for start, end in sorted(map(tuple, as_spans(spans).tolist())):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return as_spans(merged)


def coverage(spans: Spans, truth: Spans) -> Float[np.ndarray, "m"]:
    """Share of each true moment that lies inside the union of `spans`, in [0, 1]."""
    truth, spans = as_spans(truth), union(spans)
    if len(spans) == 0:
        return np.zeros(len(truth))
    inside = np.minimum(truth[:, None, 1], spans[None, :, 1]) - np.maximum(truth[:, None, 0], spans[None, :, 0])
    length = truth[:, 1] - truth[:, 0]
    return np.divide(np.maximum(inside, 0.0).sum(axis=1), length, out=np.zeros(len(truth)), where=length > 0)


def window_recall(survivors: Spans, truth: Spans) -> tuple[float, float]:
    """(any, share): 1.0 when some true moment was found, as R1 asks for any; and the share of true moments that were found.

    Of the survivors it is the search's recall, of the k best windows window recall@k (RGNet's clip retrieval R@k, arXiv 2312.06729, with half a moment as hit).
    """
    found = coverage(survivors, truth) >= COVERED - 1e-9
    return (float(found.any()), float(found.mean())) if len(found) else (float("nan"), float("nan"))


def oracle_window(moment: tuple[float, float], span_s: float, stride_s: float, duration_s: float) -> tuple[float, float]:
    """Of a level's windows (start k * stride_s, length span_s) the one whose centre is nearest to the moment's; inside the video.

    It is a window of the grid, not one centred on the truth: a centred one would give the answer away.
    """
    last = max(duration_s - span_s, 0.0)
    centre = (moment[0] + moment[1]) / 2
    start = min(max(round((centre - span_s / 2) / stride_s) * stride_s, 0.0), last)
    return start, min(start + span_s, duration_s)
