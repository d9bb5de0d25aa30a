"""Contrastive examples: windows that do not show what is asked, and questions that are not answered by what is shown.

random: any window of the same film; hard: one that looks like the event; cross_video: a window of another film; swap: the same window under a
question with an attribute changed. Whatever the strategy, no instant of a negative window lies in a moment of the question: the released ReVisionLLM
code lets 2 to 13 % overlap. Plain functions of moments and windows; `curriculum.py` chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from revision_jax.data.windows import Moment, overlaps_any

PEAKS = 4  # look-alikes of an event that a hard negative is drawn from
Candidate = TypeVar("Candidate")


def free_starts(moments: tuple[Moment, ...], count: int, rate: float, span_s: float) -> Int[np.ndarray, "n"]:
    """Frame indices at which a window of span_s may begin, inside a film of `count` frames, without touching any moment.

    A film shorter than the window has the one start 0. Empty if no window is free.
    """
    last = max(0, count - round(span_s * rate))
    starts = np.arange(last + 1)
    free = np.ones(last + 1, bool)
    for begin, end in moments:
        free &= (starts / rate >= end) | (starts / rate + span_s <= begin)
    return starts[free]


def random_window(rng: np.random.Generator, free: Int[np.ndarray, "n"]) -> int | None:
    """One of the free starts; None if there is none."""
    return int(free[rng.integers(len(free))]) if len(free) else None


def hard_window(
    rng: np.random.Generator, free: Int[np.ndarray, "n"], frames: Float[np.ndarray, "T E"], event: Bool[np.ndarray, "T"], length: int
) -> int | None:
    """A free start whose window of `length` frames holds one of the PEAKS frames most like the event; None if there is none.

    frames: unit vectors of the whole film; event: which of them show the event. The likeness is the cosine to the event's mean frame. Where in the
    window the look-alike falls is uniform, as it is for a positive.
    """
    if not len(free) or not event.any():
        return random_window(rng, free)
    likeness = frames @ frames[event].mean(0)
    inside = np.zeros(len(frames) + 1, np.int64)
    np.add.at(inside, np.minimum(free, len(frames)), 1)
    np.add.at(inside, np.minimum(free + length, len(frames)), -1)
    likeness = np.where(np.cumsum(inside[:-1]) > 0, likeness, -np.inf)
    peaks: list[int] = []
    for _ in range(PEAKS):
        peak = int(np.argmax(likeness))
        if likeness[peak] == -np.inf:
            break
        peaks.append(peak)
        likeness[max(0, peak - length // 2) : peak + length // 2 + 1] = -np.inf
    if not peaks:
        return random_window(rng, free)
    peak = peaks[rng.integers(len(peaks))]
    return random_window(rng, free[(free <= peak) & (peak < free + length)])


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
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


def strategy(rng: np.random.Generator, weights: tuple[tuple[str, float], ...]) -> str:
    """One name, drawn by weight. Raises ValueError if no weight is above 0."""
    values = np.array([weight for _, weight in weights], np.float64)
    if not len(values) or values.sum() <= 0:
        raise ValueError("negatives: no strategy has a weight above 0")
    return weights[int(rng.choice(len(values), p=values / values.sum()))][0]
