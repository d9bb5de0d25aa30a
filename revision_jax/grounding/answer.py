"""What a question gets: moments in seconds with their confidence, whether any is accepted, and how they were found. Plain data, JSON both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from revision_jax.grounding.found import Found
from revision_jax.grounding.merging import accepted


@dataclass(frozen=True)
class Moment:
    """Seconds [start_s, end_s] of the video. accepted: it is an answer (`merging.accepted`), no mere alternative."""

    start_s: float
    end_s: float
    confidence: float
    accepted: bool


@dataclass(frozen=True)
class Answer:
    """present: any moment is accepted. moments: ranked candidates, best first, also when none is accepted. levels: the path (`Trace.to_json`).
    seconds: time spent by part."""

    query: str
    present: bool
    moments: tuple[Moment, ...]
    levels: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The entry of `results` in what `launch.ground --json` writes."""
        moments = [{**asdict(moment), "start": timestamp(moment.start_s), "end": timestamp(moment.end_s)} for moment in self.moments]
        seconds = {name: round(value, 4) for name, value in self.seconds.items()}
        return {"query": self.query, "present": self.present, "moments": moments, "levels": list(self.levels), "seconds": seconds}


def answer(found: Found, threshold: float, duration_s: float, seconds: dict[str, float] | None = None, further: float | None = None) -> Answer:
    """A search's result decided at a threshold, and at `further` for moments beside the first (`merging.accepted`). Times are rounded to milliseconds and kept
    inside the video, start before end."""
    moments = []
    for candidate in found.moments:
        start = min(max(round(candidate.start_s, 3), 0.0), duration_s)
        end = min(max(round(candidate.end_s, 3), 0.0), duration_s)
        if start < end:
            moments.append((start, end, float(candidate.confidence)))
    spans, confidence = np.asarray([m[:2] for m in moments], np.float64).reshape(-1, 2), np.asarray([m[2] for m in moments], np.float64)
    decided = accepted(spans, confidence, threshold, further).tolist()
    moments = [Moment(*moment, chosen) for moment, chosen in zip(moments, decided, strict=True)]
    spent = {**(seconds or {}), **found.seconds}
    return Answer(found.query, any(m.accepted for m in moments), tuple(moments), tuple(trace.to_json() for trace in found.levels), spent)


def result(path: str, duration_s: float, fps: float, answers: Sequence[Answer], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """One video's part of the JSON that `launch.ground` writes."""
    video = {"path": path, "duration_s": duration_s, "fps": fps}
    return {"video": {**video, "warnings": list(warnings)} if warnings else video, "results": [a.to_json() for a in answers]}


def timestamp(seconds: float) -> str:
    """hh:mm:ss.s"""
    tenths = round(max(seconds, 0.0) * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
