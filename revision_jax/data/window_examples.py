"""Examples that show one window: frames of a film (dense), the same as one token (presence), or patches around a boundary (patch).

    dense      where in the window does it happen? frame numbers, or not present           stage 1-A
    presence   does it happen in the window? yes or no                                      stage 1-B
    patch      which of these few seconds belong to it?                                     stage 3
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig, PromptConfig, StageConfig
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.contrastive import Contrastive
from revision_jax.data.corpus import Film
from revision_jax.data.prompts import Answer
from revision_jax.data.shown import Frames, Out, Shapes, show
from revision_jax.data.targets import Target, Targets
from revision_jax.data.windows import Moment, frame_span, instants, shows, slot_frames


class WindowExamples:
    """Dense and presence: a window at a random place around the event, or a contrastive one."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, contrastive: Contrastive, late: bool):
        level = config.grounding.level(stage.level)
        below = config.grounding.below(level.name) if level.kind == "nested" else level  # whose windows are shown
        self.presence = stage.task == "presence"
        self.prompt: PromptConfig = stage.prompt or level.prompt
        self.span_s = stage.examples.span_s or below.span_s
        self.slots = stage.examples.frames or below.frames or below.tokens
        self.sampling, self.cut = below.sampling, stage.cut
        self.targets, self.contrastive = targets, contrastive
        self.frames = Frames(targets.film(int(targets.videos[0])), late)

    @property
    def shapes(self) -> Shapes:
        if self.presence:
            return {**self.frames.shapes(1, self.slots), "window_mask": ((1,), "bool")}
        return self.frames.shapes(self.slots)

    def fill(self, rng: np.random.Generator, target: Target, absent: bool, out: Out) -> tuple[TrainQuestion, Answer]:
        """The arrays of an example; what is asked about them, and the answer."""
        start = self._around(rng, target)
        film, question = target.film, target.question
        if absent:
            film, question, start = self.contrastive.window(rng, target, start, self.span_s, lambda other: self._around(rng, other))
        begin = start / film.rate
        index = slot_frames(begin, self.span_s, self.slots, film.rate, film.count, self.sampling)
        if self.presence:
            self.frames.fill(film, index[None], begin, out)
            out["window_mask"][:] = True
            return question, not absent
        times = self.frames.fill(film, index, begin, out)
        if absent:
            return question, None
        # The first moment that counts as shown; the rest of a film's moments are other windows' business.
        shown = [moment for moment in question.moments if shows(moment, begin, begin + self.span_s)]
        moment = min(shown, default=target.moment)
        return question, named(self.prompt, times, out["frame_mask"], (moment[0] - begin, moment[1] - begin), self.span_s)

    def _around(self, rng: np.random.Generator, target: Target) -> int:
        """The first frame of a window that shows the target: the whole event where it fits and is not to be cut, else enough of it."""
        begin, end = target.moment
        cut = rng.random() < self.cut
        if end - begin <= self.span_s and not cut:
            return draw_start(rng, target.film, self.span_s, end - self.span_s, begin)
        need = min(0.5 * (end - begin), 0.4 * self.span_s)
        return draw_start(rng, target.film, self.span_s, begin + need - self.span_s, end - need)


class PatchExamples:
    """A few seconds around a boundary of a moment, start or end; the answer is the part of the moment that they show."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, contrastive: Contrastive):
        self.level: LevelConfig = config.grounding.level(stage.level)
        self.prompt: PromptConfig = stage.prompt or self.level.prompt
        self.targets, self.contrastive = targets, contrastive
        self._arrays = targets.film(int(targets.videos[0])).arrays

    @property
    def shapes(self) -> Shapes:
        slots = self.level.tokens
        stored = {name: ((slots, *self._arrays[name][0]), self._arrays[name][1]) for name in ("tokens", "change")}
        return {**stored, "frame_mask": ((slots,), "bool"), "times": ((slots,), "float32")}

    def fill(self, rng: np.random.Generator, target: Target, absent: bool, out: Out) -> tuple[TrainQuestion, Answer]:
        """As `WindowExamples.fill`. Raises ConfigError for patch features of another rate than the level's."""
        start = self._around(rng, target)
        film, question, level = target.film, target.question, self.level
        if absent:
            film, question, start = self.contrastive.window(rng, target, start, level.span_s, lambda other: self._around(rng, other))
        begin = start / film.rate
        index = slot_frames(begin, level.span_s, level.tokens, film.rate, film.count, "even")
        for name in ("tokens", "change"):
            show(film, name, index, out[name])
        out["frame_mask"][:] = (index >= 0) & (index < film.count)
        times = film.times_of(index) - begin
        out["times"][:] = times
        moment = (target.moment[0] - begin, target.moment[1] - begin)
        return question, None if absent else named(self.prompt, times, out["frame_mask"], moment, level.span_s)

    def _around(self, rng: np.random.Generator, target: Target) -> int:
        film, level = target.film, self.level
        if abs(film.rate - level.rate) > 1e-6:
            raise ConfigError(f"levels.{level.name}: {level.tokens} tokens in {level.span_s} s are {level.rate} a second; the patch features have {film.rate}")
        boundary = target.moment[int(rng.integers(2))]
        margin = 1.0 / level.rate  # at least a frame on each side
        return draw_start(rng, film, level.span_s, boundary - level.span_s + margin, boundary - margin)


def draw_start(rng: np.random.Generator, film: Film, span_s: float, low_s: float, high_s: float) -> int:
    """A frame in [low, high] seconds, uniform, moved so that a window of span_s from there lies in the film."""
    low, high = int(np.ceil(low_s * film.rate - 1e-6)), int(np.floor(high_s * film.rate + 1e-6))
    last = max(0, film.count - round(span_s * film.rate))
    low, high = min(max(low, 0), last), min(max(high, 0), last)
    return int(rng.integers(low, high + 1)) if high > low else low


def named(prompt: PromptConfig, times: Float[np.ndarray, "T"], mask: Bool[np.ndarray, "T"], moment: Moment, span_s: float) -> tuple[int, int] | None:
    """The slots that an answer names for a moment. Times and moment in seconds from the window's start."""
    if prompt.end == "instant":
        return instants(0.0, span_s, mask, moment)
    return frame_span(times, mask, moment)
