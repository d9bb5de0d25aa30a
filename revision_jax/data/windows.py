"""Where windows lie in a film, which of them show a moment, and which numbers an answer names.

A slot is a place in a window (a frame) or in a group (a window); its index is its number in the answer. Frames are samples of an instant,
so a slot shows a moment [s, e) exactly if s <= its time < e, and the span of an answer is the first and the last slot that do:

    slots at 1 fps     10    11    12    13    14        moment 10.4 .. 13.2
    shows it           no    yes   yes   yes   no        answer "from 11 to 13", read back as 10.5 .. 13.5

The truth lies anywhere within one slot before the first and after the last, so `span_seconds` reads an answer back half a slot wider: that halves
the expected error of a boundary against reading it at the slot, and the label stays a function of what can be seen, which a label rounded to
the nearest slot is not. All times are seconds, float64.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

Moment = tuple[float, float]  # start, end in seconds; end exclusive
EPS = 1e-6  # seconds; timestamps travel through float32


def overlap(moment: Moment, start_s: float, end_s: float) -> float:
    """Seconds that a moment and [start_s, end_s) share; 0 if none."""
    return max(0.0, min(moment[1], end_s) - max(moment[0], start_s))


def overlaps_any(moments: tuple[Moment, ...], start_s: float, end_s: float) -> bool:
    """Whether any moment has an instant in [start_s, end_s)."""
    return any(overlap(moment, start_s, end_s) > 0 for moment in moments)


def shows(moment: Moment, start_s: float, end_s: float) -> bool:
    """Whether a window counts as showing a moment: it holds at least half of the event, or event in at least 40 % of the window."""
    return bool(overlap(moment, start_s, end_s) >= min(0.5 * (moment[1] - moment[0]), 0.4 * (end_s - start_s)) - EPS)


def window_count(duration_s: float, span_s: float, stride_s: float) -> int:
    """Windows [i stride, i stride + span) that it takes to cover a film: the last one is the first to reach its end. At least 1."""
    return max(1, math.ceil((duration_s - span_s) / stride_s - EPS) + 1)


def slot_times(start_s: float, span_s: float, slots: int) -> Float[np.ndarray, "T"]:
    """Times of `slots` evenly spaced slots of a window; the first is at its start."""
    return start_s + np.arange(slots) * (span_s / slots)


def grid_index(times: Float[np.ndarray, "*b"], rate: float) -> Int[np.ndarray, "*b"]:
    """Index of the stored frame nearest to each time, for a store with one frame per tick k / rate. Not clipped to the film."""
    return np.floor(np.asarray(times) * rate + 0.5 + EPS).astype(np.int64)


def slot_frames(
    start_s: Float[np.ndarray, "*b"] | float, span_s: Float[np.ndarray, "*b"] | float, slots: int, rate: float, count: int, sampling: str
) -> Int[np.ndarray, "*b T"]:
    """Which stored frame each slot of a window shows; windows that begin at `start_s`. A number outside of [0, count) is no frame of the film.

    sampling: `LevelConfig.sampling`. even: the frames nearest to `slot_times`. linspace: ReVisionLLM's, `linspace(start, end, slots)` in frames with its end
    included, cut to whole numbers; where the film ends with the window, and there is no frame at its end any more, the film's last frame is the end.
    """
    start, span = np.asarray(start_s, np.float64), np.asarray(span_s, np.float64)
    if sampling == "even":
        return grid_index(start[..., None] + np.arange(slots) * (span[..., None] / slots), rate)
    first = grid_index(start[..., None], rate)[..., 0]
    last = first + np.rint(span * rate).astype(np.int64)
    last = np.where(last == count, last - 1, last)[..., None]
    # As numpy.linspace computes it, whose integers are rounded down; without its checks, which take longer than all else here.
    index = np.floor(np.arange(slots) * ((last - first[..., None]) / max(slots - 1, 1)) + first[..., None]).astype(np.int64)
    index[..., -1:] = last if slots > 1 else first[..., None]
    return index


def showing(times: Float[np.ndarray, "T"], mask: Bool[np.ndarray, "T"], moment: Moment) -> Bool[np.ndarray, "T"]:
    """Which slots show a moment."""
    return mask & (times >= moment[0] - EPS) & (times < moment[1] - EPS)


def frame_span(times: Float[np.ndarray, "T"], mask: Bool[np.ndarray, "T"], moment: Moment) -> tuple[int, int] | None:
    """(first, last) slot that shows the moment, both inclusive. A moment that falls between two slots gets the nearest; None if it lies outside of them all.

    times: of the slots, rising; mask: which slots exist.
    """
    found = np.flatnonzero(showing(times, mask, moment))
    if len(found):
        return int(found[0]), int(found[-1])
    real = np.flatnonzero(mask)
    if not len(real):
        return None
    step = float(times[real[-1]] - times[real[0]]) / max(len(real) - 1, 1) or 1.0
    middle = 0.5 * (moment[0] + moment[1])
    nearest = int(real[np.argmin(np.abs(times[real] - middle))])
    return (nearest, nearest) if abs(times[nearest] - middle) <= step else None


def instants(start_s: float, span_s: float, mask: Bool[np.ndarray, "T"], moment: Moment) -> tuple[int, int] | None:
    """A moment's two ends as numbers of slots, each the nearest that exists (`mask`): the label of answers that name times (`PromptConfig.end = "instant"`).

    As ReVisionLLM's dense level has it, a number n means start_s + n span_s / T whatever frame the slot shows. None where there is no slot.
    """
    real = np.flatnonzero(mask)
    if not len(real):
        return None
    first, last = (round((end - start_s) / span_s * len(mask)) for end in moment)
    return min(max(first, int(real[0])), int(real[-1])), min(max(last, int(real[0])), int(real[-1]))


def span_seconds(first: int, last: int, start_s: float, rate: float) -> Moment:
    """Seconds that "from first to last" means in a window from start_s with `rate` slots a second: the inverse of `frame_span`, at best half a slot off."""
    return start_s + (first - 0.5) / rate, start_s + (last + 0.5) / rate


def window_span(starts: Float[np.ndarray, "W"], mask: Bool[np.ndarray, "W"], span_s: float, moment: Moment) -> tuple[int, int] | None:
    """(first, last) window of a group that shows a moment (`shows`), or the one that holds most of it; None if it touches no window.

    starts: rising; the windows that show one moment are consecutive.
    """
    shared = np.minimum(moment[1], starts + span_s) - np.maximum(moment[0], starts)
    shared = np.where(mask, shared, -1.0)
    if not len(shared) or shared.max() <= EPS:
        return None
    found = np.flatnonzero(shared >= min(0.5 * (moment[1] - moment[0]), 0.4 * span_s) - EPS)
    if not len(found):
        found = np.array([int(np.argmax(shared))])
    return int(found[0]), int(found[-1])
