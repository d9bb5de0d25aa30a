"""The hierarchy as data: which windows a level has over a film, how they form groups, and what an answer's numbers mean in seconds.

    film        0 ------------------------------------------------------------- duration
    sparse      [w0 ....)                        windows of span_s, a new one every stride_s;
                     [w1 ....)                   the last one is moved back so that it ends with the film
                                ...     [wn ..)
    groups      (w0 .. w119) (w60 .. w179)       `tokens` windows a call, the last group moved back too
    nested      a run of windows is one token    (sparse tokens of sparse tokens)
    dense       one token a frame: slot k of `tokens` shows second start + k * span / tokens
    patch       the kept patches of a few seconds around a boundary

Everything carries true seconds. Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from revision_jax.config import ConfigError, LevelConfig
from revision_jax.data.windows import span_seconds

EPSILON = 1e-6  # seconds; floats such as 0.1 * 3 must not make an extra window
WINDOW_KINDS = ("sparse", "nested")
SNAPS = 16  # places a frame window may start at within its own length: coarse enough that questions meet in the same window


@dataclass(frozen=True, order=True)
class Window:
    """Seconds [start_s, end_s) of the film. `span_s`: what its slots are laid over; longer than the window where the film is shorter."""

    start_s: float
    end_s: float
    span_s: float

    @property
    def centre_s(self) -> float:
        return (self.start_s + self.end_s) / 2


def applicable(levels: Sequence[LevelConfig], duration_s: float) -> tuple[LevelConfig, ...]:
    """The levels that a stretch of `duration_s` seconds is searched with, coarse to fine.

    Left out: levels whose `min_duration_s` is above it, and window levels where one window of the next finer level shows everything anyway.
    Raises ConfigError if the order makes no sense (a nested level needs a sparse one below it, a patch level comes last).
    """
    check_order(levels)
    kept = [level for level in levels if duration_s + EPSILON >= level.min_duration_s and level.searched]
    frames = next((level for level in kept if level.kind == "dense"), None)
    if frames is not None and duration_s <= frames.span_s + EPSILON:
        kept = [level for level in kept if level.kind not in WINDOW_KINDS]
    below = [level.kind for level in kept[1:]] + [""]
    return tuple(level for level, finer in zip(kept, below, strict=True) if level.kind != "nested" or finer in WINDOW_KINDS)


def hierarchy(levels: Sequence[LevelConfig], duration_s: float) -> str:
    """The levels that find candidates in so much video, coarse to fine, such as "sparse/dense": what a calibrator is fitted for. The patch level moves
    boundaries alone."""
    return "/".join(level.name for level in applicable(levels, duration_s) if level.kind != "patch")


def check_order(levels: Sequence[LevelConfig]) -> None:
    """Raises ConfigError where the tuple of levels cannot be run from coarse to fine. Levels that are no part of the search do not count."""
    levels = [level for level in levels if level.searched]
    if not levels:
        raise ConfigError("grounding.levels: there are none; at least one level is needed to answer")
    rank = {"nested": 0, "sparse": 1, "dense": 2, "patch": 3}
    for above, below in pairwise(levels):
        if rank[above.kind] > rank[below.kind] or (above.kind == below.kind and above.kind in ("dense", "patch")):
            wrong = f"{below.name!r} ({below.kind}) cannot come after {above.name!r} ({above.kind})"
            raise ConfigError(f"grounding.levels: {wrong}; the order is nested, sparse, dense, patch")
    for index, level in enumerate(levels):
        if level.kind == "nested" and (index + 1 == len(levels) or levels[index + 1].kind not in WINDOW_KINDS):
            raise ConfigError(f"grounding.levels: {level.name!r} is nested and needs a sparse level below it")
    if levels[0].kind == "patch":
        raise ConfigError(f"grounding.levels: {levels[0].name!r} refines boundaries, so a dense level must come before it")


def windows(start_s: float, end_s: float, span_s: float, stride_s: float) -> list[Window]:
    """Windows of `span_s` over [start_s, end_s], one every `stride_s`, the last moved back to end with the stretch.

    They cover all of it and lie inside it. A stretch shorter than a window is one window, cut. Raises ValueError for an empty stretch.
    """
    length = end_s - start_s
    if not length > 0:
        raise ValueError(f"a stretch must have a length, is {start_s} to {end_s}")
    if length <= span_s + EPSILON:
        return [Window(start_s, end_s, span_s)]
    steps = math.floor((length - span_s) / stride_s + EPSILON)
    starts = [start_s + k * stride_s for k in range(steps + 1)]
    if starts[-1] + span_s < end_s - EPSILON:
        starts.append(end_s - span_s)
    return [Window(s, min(s + span_s, end_s), span_s) for s in starts]


def groups(count: int, size: int) -> list[range]:
    """`count` windows in groups of `size` neighbours; the last group is moved back, so that no group is shorter than it must be."""
    if count <= size:
        return [range(count)] if count else []
    starts = list(range(0, count - size + 1, size))
    if starts[-1] + size < count:
        starts.append(count - size)
    return [range(s, s + size) for s in starts]


def runs(below: Sequence[Window], length: int) -> list[range]:
    """Consecutive windows of the level below in runs of `length`; the last run may be cut."""
    return [range(first, min(first + length, len(below))) for first in range(0, len(below), length)]


def spanned(members: Sequence[Window]) -> Window:
    """Consecutive windows as one."""
    start, end = members[0].start_s, max(window.end_s for window in members)
    return Window(start, end, end - start)


def slot_seconds(window: Window, count: int, first: int, last: int, end: str = "inclusive", sampling: str = "even") -> tuple[float, float]:
    """Frames `first` to `last` of a window as seconds, cut at the window's end. `end`: what the numbers name (`PromptConfig.end`), `sampling`: which
    frames the slots show (`LevelConfig.sampling`); numbers that are instants mean seconds by themselves, whatever the slots show.

    Labels are made by `data.windows.frame_span` (the first and last frame that show the moment) and read back by its inverse, half a slot wider on both
    sides. Window at 100 s, 120 s long, 120 frames: "from 12 to 31 ." is [111.5, 131.5]. Where a frame stands for the time up to the next one
    (exclusive) it is [112, 132], where the numbers are instants [112, 131]; an instant alone is widened by one to both sides, and the window's very
    last one, which is what an event beyond the window rounds to, comes back empty.
    """
    rate = (count - 1 if sampling == "linspace" and end != "instant" and count > 1 else count) / window.span_s
    start, stop = span_seconds(first, last, window.start_s, rate)
    if end != "inclusive":
        lone = end == "instant" and first == last < count - 1
        start, stop = window.start_s + (first - lone) / rate, window.start_s + (last + lone + (end == "exclusive")) / rate
    return max(start, 0.0), min(stop, window.end_s)


def windows_seconds(members: Sequence[Window], first: int, last: int) -> tuple[float, float]:
    """Windows `first` to `last` (inclusive) of a group as seconds: from the first one's start to the last one's end."""
    chosen = members[first : last + 1]
    return chosen[0].start_s, max(window.end_s for window in chosen)


def joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same seconds as separate spans in order of time; spans that touch become one."""
    out: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1] + EPSILON:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def frame_windows(spans: Iterable[tuple[float, float]], level: LevelConfig, start_s: float, end_s: float, tick_s: float) -> list[Window]:
    """Windows of a frame level that show the given spans: each stretch of touching spans gets one window around its centre, or, if it
    is longer than a window, one every stride. Inside [start_s, end_s]; starts lie on a coarse grid of whole ticks (`tick_s` seconds a stored
    frame), so that different questions find the same windows, and their frames are exactly stored ones.
    """
    if end_s - start_s <= level.span_s + EPSILON:
        return [Window(start_s, end_s, level.span_s)]
    grid = tick_s * max(1, round(level.span_s / SNAPS / tick_s))
    latest = start_s + math.ceil((end_s - level.span_s - start_s) / tick_s - EPSILON) * tick_s  # reaches the end, on the grid of frames
    found: dict[float, Window] = {}
    for low, high in joined(spans):
        length = high - low
        if length <= level.span_s + EPSILON:
            wanted = [(low + high - level.span_s) / 2]
        else:
            count = math.ceil((length - level.span_s) / level.stride_s - EPSILON) + 1
            wanted = [low + k * (length - level.span_s) / (count - 1) for k in range(count)]
        for start in wanted:
            start = start_s + round((start - start_s) / grid) * grid
            start = min(max(start, start_s), latest)
            found[round(start, 6)] = Window(start, min(start + level.span_s, end_s), level.span_s)
    return [found[key] for key in sorted(found)]


def boundary_window(boundary_s: float, level: LevelConfig, start_s: float, end_s: float) -> Window:
    """`level.span_s` seconds around a boundary, on the level's grid of frames, moved inside [start_s, end_s]; the whole stretch where it is shorter."""
    start = min(max(boundary_s - level.span_s / 2, start_s), max(end_s - level.span_s, start_s))
    start = max(math.floor(start * level.rate + EPSILON), math.ceil(start_s * level.rate - EPSILON)) / level.rate
    return Window(start, min(start + level.span_s, end_s), level.span_s)
