"""The proof that annotations are complete: every question judged again, frame by frame, from what is drawn.

Written apart from `world.matches` on purpose. It never looks at an event: it follows the subjects that stand in the pictures, sees where they
go, when their colour turns and who covers whom, and marks the frames that answer a question. Nothing else may be listed, nothing less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from revision_jax.data.synthetic.questions import Question
from revision_jax.data.synthetic.script import Script
from revision_jax.data.synthetic.shapes import overlap
from revision_jax.data.synthetic.world import MERGE_GAP_S, Drawn, Look, Query

_TRAVEL = 40  # pixels; less is no motion


class Observer:
    """Watches a whole video once. `seen[subject's key]` = [(frame, Drawn, its layer)]; `meetings` = frames where one subject covers another."""

    def __init__(self, script: Script):
        self.script = script
        self.seen: dict[tuple[int, int], list[tuple[int, Drawn]]] = {}
        self.meetings: dict[tuple[tuple[int, int], tuple[int, int]], int] = {}  # (upper, lower) -> frames
        starts = sorted(range(len(script.events)), key=lambda number: script.events[number].start)
        active, upcoming = [], 0
        for frame in range(script.frames):
            while upcoming < len(starts) and script.events[starts[upcoming]].start <= frame:
                active.append(starts[upcoming])
                upcoming += 1
            active = [number for number in active if script.events[number].end > frame]
            drawn = script.drawn(frame, active) if active else ()
            for layer, item in enumerate(drawn):
                self.seen.setdefault(item.key, []).append((frame, item))
                for below in drawn[:layer]:
                    covered, _ = overlap((item.subject.shape, item.diameter), (below.subject.shape, below.diameter), item.x - below.x, item.y - below.y)
                    if covered > 0:
                        self.meetings[item.key, below.key] = self.meetings.get((item.key, below.key), 0) + 1

    def frames(self, query: Query) -> Bool[np.ndarray, " frames"]:
        """The frames on which the question holds."""
        marks = np.zeros(self.script.frames, bool)
        for key, views in self.seen.items():
            if query.relation is not None:
                answering = self._passes(query, key, views)
            elif query.to_colour is not None:
                answering = self._turns(query, views)
            elif query.motion is not None:
                answering = [frame for frame, item in views if _is(query.look, item)] if self._goes(views) == query.motion else []
            else:
                answering = [frame for frame, item in views if _is(query.look, item)]
            marks[answering] = True
        return marks

    def _goes(self, views: list[tuple[int, Drawn]]) -> str:
        first, last = views[0][1], views[-1][1]
        dx, dy = last.x - first.x, last.y - first.y
        if max(abs(dx), abs(dy)) < _TRAVEL:
            return "none"
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")

    def _turns(self, query: Query, views: list[tuple[int, Drawn]]) -> list[int]:
        colours = [item.subject.colour for _, item in views]
        order = [colour for i, colour in enumerate(colours) if i == 0 or colours[i - 1] != colour]
        return [frame for frame, _ in views] if order == [query.look.colour, query.to_colour] and _is(query.look, views[0][1]) else []

    def _passes(self, query: Query, key: tuple[int, int], views: list[tuple[int, Drawn]]) -> list[int]:
        if self._goes(views) == "none" or not _is(query.look, views[0][1]):
            return []
        result: list[int] = []
        for upper, lower in self.meetings:
            mover, rests = (lower, upper) if query.relation == "behind" else (upper, lower)
            if mover == key and self._goes(self.seen[rests]) == "none" and _is(query.other, self.seen[rests][0][1]):
                result += [frame for frame, _ in views]
        return result


def _is(look: Look, item: Drawn) -> bool:
    there = item.subject
    asked = {"size": look.size, "pattern": look.pattern, "colour": look.colour, "shape": look.shape}
    return all(value is None or getattr(there, name) == value for name, value in asked.items())


def runs(marks: Bool[np.ndarray, " frames"], fps: float) -> list[tuple[int, int]]:
    """Half-open runs of marked frames; gaps shorter than a second are closed."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    result: list[list[int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if result and start - result[-1][1] < MERGE_GAP_S * fps:
            result[-1][1] = end
        else:
            result.append([start, end])
    return [(start, end) for start, end in result]


def disagreements(script: Script, questions: Sequence[Question]) -> list[str]:
    """One line for every question whose listed moments are not exactly the observed ones; empty = the annotations are complete."""
    observer = Observer(script)
    lines = []
    for question in questions:
        observed = runs(observer.frames(question.query), script.fps)
        if observed != list(question.moments):
            lines.append(f"{question.query_id} {question.text!r}: listed {list(question.moments)}, observed {observed}")
    return lines
