"""Windows that do not show what is asked: plain functions of moments and windows. `contrastive.py` chooses among them.

Whatever the strategy, no instant of a negative window lies in a moment of the question: the released ReVisionLLM code lets 2 to 13 % overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from revision_jax.data.windows import Moment, overlaps_any

PEAKS = 4  # look-alikes of an event that a hard negative is drawn from
Candidate = TypeVar("Candidate")


def free_starts(moments: tuple[Moment, ...], count: int, rate: float, span_s: float) -> Int[np.ndarray, "n"]:
    """Frame indices at which a window of span_s may begin, inside a film of `count` frames, without touching any moment.

    A film shorter than the window has the one start 0. Empty if no window is free.
    """
    last = max(0, count - round(span_s * rate))
    free = np.ones(last + 1, bool)
    for begin, end in moments:
        # Those that may touch the moment, and a few more: the rest of a long film needs no look.
        near = slice(max(0, math.floor((begin - span_s) * rate) - 1), max(0, math.ceil(end * rate) + 2))
        starts = np.arange(last + 1)[near] / rate
        free[near] &= (starts >= end) | (starts + span_s <= begin)
    return np.flatnonzero(free)


def random_window(rng: np.random.Generator, free: Int[np.ndarray, "n"]) -> int | None:
    """One of the free starts; None if there is none."""
    return int(free[rng.integers(len(free))]) if len(free) else None


def hard_window(
    rng: np.random.Generator, free: Int[np.ndarray, "n"], likeness: Float[np.ndarray, "T"], length: int
) -> int | None:
    """A free start whose window of `length` frames holds one of the PEAKS frames most like the event; None if there is none.

    likeness: of every frame of the film to the event (`corpus.Film.likeness`).
    """
    if not len(free):
        return None
    inside = np.zeros(len(likeness) + 1, np.int64)
    np.add.at(inside, np.minimum(free, len(likeness)), 1)
    np.add.at(inside, np.minimum(free + length, len(likeness)), -1)
    likeness = np.where(np.cumsum(inside[:-1]) > 0, likeness, -np.inf)
    peaks: list[int] = []
    for _ in range(PEAKS):
        peak = int(np.argmax(likeness))
        if likeness[peak] == -np.inf:
            break
        peaks.append(peak)
        likeness[max(0, peak - length // 2) : peak + length // 2 + 1] = -np.inf
    return window_with(rng, free, peaks, length)


def scored_window(
    rng: np.random.Generator, free: Int[np.ndarray, "n"], places: Int[np.ndarray, "m"], scores: Float[np.ndarray, "m"], own: float, length: int
) -> int | None:
    """A free start whose window holds one of the PEAKS places that score highest below `own`, the true moment's score; None if there is none.

    places: frames that scores stand for, the middles of the windows that were scored. Semi-hard, as in FaceNet (arXiv 1503.03832): what already scores
    above the truth is often the truth unlabelled.
    """
    inside = [((free <= place) & (place < free + length)).any() for place in places]
    chosen = np.flatnonzero((scores < own) & np.asarray(inside, bool))
    best = chosen[np.argsort(-scores[chosen], kind="stable")][:PEAKS]
    return window_with(rng, free, [int(place) for place in places[best]], length)


def window_with(rng: np.random.Generator, free: Int[np.ndarray, "n"], places: list[int], length: int) -> int | None:
    """A free start whose window of `length` frames holds one of the places, at a random one: where in the window it falls is uniform, as for a positive."""
    if not places:
        return None
    place = places[rng.integers(len(places))]
    return random_window(rng, free[(free <= place) & (place < free + length)])


def unanswered(
    draw: Callable[[], Candidate | None], moments: Callable[[Candidate], tuple[Moment, ...]], start_s: float, end_s: float, tries: int = 8
) -> Candidate | None:
    """The first of up to `tries` drawn questions that has no instant in [start_s, end_s); None if all have one, or nothing could be drawn."""
    for _ in range(tries):
        candidate = draw()
        if candidate is not None and not overlaps_any(moments(candidate), start_s, end_s):
            return candidate
    return None


def is_absent(index: int, share: float) -> bool:
    """Whether example `index` is a contrastive one: spread evenly, so that every batch holds its share to within one."""
    return absent_before(index + 1, share) > absent_before(index, share)


def absent_before(index: int, share: float) -> int:
    """How many of the examples before number `index` are contrastive."""
    return int(index * share + 1e-9)


def strategy(rng: np.random.Generator, weights: tuple[tuple[str, float], ...]) -> str:
    """One name, drawn by weight. Raises ValueError if no weight is above 0."""
    total = sum(weight for _, weight in weights)
    if total <= 0:
        raise ValueError("negatives: no strategy has a weight above 0")
    drawn, chosen = rng.random() * total, ""
    for name, weight in weights:
        if weight > 0 and drawn >= 0:
            drawn, chosen = drawn - weight, name
    return chosen
