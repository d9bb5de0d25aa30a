"""What speaks for a window among others, and for a span: similarities, the decoder's odds, and the way that something goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from revision_jax.config import GroundingConfig
from revision_jax.grounding import confidence as sure
from revision_jax.grounding.confidence import CLIP
from revision_jax.grounding.found import Ranked
from revision_jax.grounding.generate import Decoded

BESIDE = 5  # frames on each side of a span that its margin of similarity is measured against
ENOUGH = 0.2  # of the frame: what goes so far the way that a question says goes that way


def span_features(
    decoded: Decoded, row: int, j: int, seconds: tuple[float, float], seen: np.ndarray, along: np.ndarray | None, span: tuple[int, int],
    coarse: tuple[float, float], edge: float,
) -> dict[str, float]:
    """`confidence.FEATURES` of one span, hypothesis j of a decoded row. seen: similarity of each slot of its window to the query and its phrases [T F];
    along: how far along the said way the subject lies there [T], None where none is said or slots have no place; coarse: `said_above`."""
    entropy, known = decoded.entropy[row, j][None], decoded.known[row, j][None]
    things, seen = seen[span[0] : span[1] + 1, min(1, seen.shape[1] - 1) :], seen[:, 0]
    gone = ENOUGH if along is None else distance_along(along[span[0] : span[1] + 1], things[:, 0])
    inside = seen[span[0] : span[1] + 1]
    beside = np.concatenate([seen[max(span[0] - BESIDE, 0) : span[0]], seen[span[1] + 1 : span[1] + 1 + BESIDE]])
    return {
        "present": float(np.clip(decoded.present[row], -CLIP, CLIP)),
        "score": max(float(decoded.score[row, j]), -CLIP),
        "behind": max(float(decoded.score[row, j] - decoded.score[row, 0]), -CLIP),
        "entropy": float(sure.mean_entropy(entropy, known)[0]),
        "max_entropy": float(sure.max_entropy(entropy, known)[0]),
        "coarse_present": coarse[0],
        "coarse_score": coarse[1],
        "inside_mean": float(inside.mean()),
        "inside_max": float(inside.max()),
        "phrase_mean": float(things.mean(0).min()),
        "phrase_max": float(things.max(0).min()),
        "margin": float(inside.mean() - beside.mean()) if len(beside) else 0.0,
        "log_duration": math.log(max(seconds[1] - seconds[0], 1e-3)),
        "astray": 1.0 - min(max(gone / ENOUGH, 0.0), 1.0),
        "edge": edge,
    }


def distance_along(along: np.ndarray, seen: np.ndarray) -> float:
    """How far something goes while it is seen, by the straight line through its places `along` a way [T], slots weighed by how well it is `seen` [T], squared;
    less where it is seen in a part of the slots alone. As `signal.travel`, for one span."""
    weight = np.square(np.asarray(seen, np.float64)) + 1e-9
    time = np.arange(len(along)) - np.average(np.arange(len(along)), weights=weight)
    spread = np.average(time * time, weights=weight)
    slope = np.average(time * along, weights=weight) / spread if spread > 1e-6 else 0.0
    return float(slope * math.sqrt(12 * spread) * np.mean(seen))


def rank_score(present: float, named: float, similarity: float, retrieval: float = GroundingConfig.retrieval) -> float:
    """Score in [0, 1] of a window among others, by the log-odds that its group holds the answer, the probability that it is named there, and its similarity,
    whose share is `retrieval`."""
    return (1.0 - retrieval) * float(sure.sigmoid(min(max(present, -CLIP), CLIP))) * named + retrieval * similarity


def said_above(ranked: Sequence[Ranked], low: float, high: float) -> tuple[float, float]:
    """Of the windows above that show a span, what was said about the best ranked one: (log-odds of presence, log-probability of being named)."""
    touching = [r for r in ranked if min(r.window.end_s, high) > max(r.window.start_s, low)]
    best = max(touching, key=lambda r: r.score, default=None)
    return (best.present, best.named) if best else (0.0, 0.0 if not ranked else -CLIP)
