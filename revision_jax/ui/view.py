"""What there is to draw of one question: `launch.ground`'s JSON turned into plain spans, with nothing taken for granted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from revision_jax.errors import UserError


@dataclass(frozen=True)
class Window:
    """A span a level looked at. score in [0, 1] (None: it was not scored), kept: it went on to the next level."""

    start_s: float
    end_s: float
    score: float | None
    kept: bool


@dataclass(frozen=True)
class Level:
    name: str
    windows: tuple[Window, ...]  # in order of time
    count: int  # windows there were at this level, drawn or not


@dataclass(frozen=True)
class Found:
    start_s: float
    end_s: float
    confidence: float
    accepted: bool


@dataclass(frozen=True)
class Question:
    query: str
    present: bool
    moments: tuple[Found, ...]  # best first
    levels: tuple[Level, ...]  # coarse to fine
    seconds: float | None = None

    @property
    def accepted(self) -> tuple[Found, ...]:
        return tuple(moment for moment in self.moments if moment.accepted)

    @property
    def rejected(self) -> tuple[Found, ...]:
        return tuple(moment for moment in self.moments if not moment.accepted)

    @property
    def verdict(self) -> str:
        """ "not present", "1 moment", "3 moments"."""
        count = len(self.accepted)
        return "not present" if not self.present else f"{count} moment{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Answered:
    """One video and what was asked about it."""

    path: str
    duration_s: float
    questions: tuple[Question, ...]
    warnings: tuple[str, ...] = field(default=())


def _windows(values: dict[str, Any], duration_s: float) -> tuple[Window, ...]:
    windows = []
    for item in values.get("windows", ()):
        score = item.get("score")
        score = None if score is None else min(max(float(score), 0.0), 1.0)
        windows.append(Window(max(float(item["start_s"]), 0.0), min(float(item["end_s"]), duration_s), score, bool(item.get("kept", False))))
    return tuple(sorted((w for w in windows if w.end_s > w.start_s), key=lambda w: (w.start_s, w.end_s)))


def read(result: dict[str, Any]) -> Answered:
    """Reads one video's part of the JSON that `launch.ground` writes; raises UserError when it is something else."""
    try:
        video = result["video"]
        duration = float(video["duration_s"])
        questions = []
        for entry in result["results"]:
            moments = [Found(float(m["start_s"]), float(m["end_s"]), float(m["confidence"]), bool(m["accepted"])) for m in entry["moments"]]
            levels = [Level(str(level["name"]), _windows(level, duration), int(level.get("count", 0))) for level in entry.get("levels", ())]
            spent = entry.get("seconds")
            # what encoding took is the video's, not the question's
            total = float(sum(v for part, v in spent.items() if part != "encode")) if isinstance(spent, dict) else None if spent is None else float(spent)
            questions.append(Question(str(entry["query"]), bool(entry["present"]), tuple(sorted(moments, key=lambda m: -m.confidence)), tuple(levels), total))
        return Answered(str(video["path"]), duration, tuple(questions), tuple(str(w) for w in video.get("warnings", ())))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"result: is not what launch.ground --json writes ({type(error).__name__}: {error})") from None
