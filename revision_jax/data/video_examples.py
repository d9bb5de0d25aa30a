"""Examples that show a group of whole videos, one token each, and ask which of them it is: ReVisionLLM's retrieval level (MSR-VTT), above all windows.

A video is shown by `frames` frames from its first to its last. The answer names the video's place in the group; a contrastive group does not hold it.
"""

from __future__ import annotations

import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, PromptConfig, StageConfig
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.prompts import Answer
from revision_jax.data.shown import Frames, Out, Shapes
from revision_jax.data.targets import Target, Targets
from revision_jax.data.windows import slot_frames
from revision_jax.errors import UserError


class VideoExamples:
    """Examples of such groups."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, late: bool):
        """Raises ConfigError where the corpus has fewer videos than a group and one more, for those that hold it not."""
        self.level = config.grounding.level(stage.level)
        self.prompt: PromptConfig = stage.prompt or self.level.prompt
        self.size = stage.windows or self.level.tokens
        self.targets = targets
        if len(targets.videos) <= self.size or self.size > self.level.tokens:
            there = f"the training data's {len(targets.videos)} videos, at most the level's {self.level.tokens} tokens"
            raise ConfigError(f"stages.{stage.name}.windows: {self.size} videos of a group must be fewer than {there}")
        self.frames = Frames(targets.film(int(targets.videos[0])), late)

    @property
    def shapes(self) -> Shapes:
        return {**self.frames.shapes(self.size, self.level.frames), "window_mask": ((self.size,), "bool")}

    def fill(self, rng: np.random.Generator, target: Target, absent: bool, out: Out) -> tuple[TrainQuestion, Answer]:
        """The arrays of an example; what is asked about them, and the answer."""
        place = int(rng.integers(self.size))
        others = self._others(rng, target)
        chosen = [*others[:place], *([] if absent else [target.video]), *others[place:]][: self.size]
        for slot, video in enumerate(chosen):
            film = self.targets.film(video)
            index = slot_frames(0.0, film.duration_s, self.level.frames, film.rate, film.count, self.level.sampling)
            self.frames.fill(film, index, 0.0, {name: out[name][slot] for name in ("frames", "tokens", "frame_mask", "times")})
        out["window_mask"][:] = True
        return target.question, None if absent else (place, place)

    def _others(self, rng: np.random.Generator, target: Target) -> list[int]:
        """Videos of a group, none of which is the target's or answers its question, as far as the annotations tell."""
        corpus, found = self.targets.corpus, []
        for place in rng.permutation(len(self.targets.videos)):
            video = int(self.targets.videos[place])
            if video != target.video and not corpus.questions(video).taken(target.question):
                found.append(video)
            if len(found) == self.size:
                break
        if not found:
            name = corpus.videos[target.video].video_id
            raise UserError(f"{name}: every other video answers {target.question.query[:60]!r} too, so there is none to tell it from")
        if len(found) < self.size:
            found += rng.choice(np.asarray(found), self.size - len(found)).tolist()
        return found
