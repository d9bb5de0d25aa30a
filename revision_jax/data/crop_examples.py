"""ReVisionLLM's groups for stage 2: a few random crops around an event, side by side at a random place among random windows of the same film.

    windows of the film, by their start     r r r r r [c c c] r r r r r r        r: shows nothing of what is asked, c: a window around the event
    answer                                            5     7                    (first, last) crop

The random windows may be anywhere in the film, so the crops do not stand where the event is in time: the model is to find them by what they show alone. With
a zoom z the group holds 1/z of the windows, each z times in a row. Source: ReVisionLLM (arXiv 2411.14901), supplement, and its released training.
"""

from __future__ import annotations

import numpy as np

from revision_jax.config import ExperimentConfig, StageConfig
from revision_jax.data import negatives
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.contrastive import QUESTIONS, Contrastive
from revision_jax.data.group_examples import GroupShape
from revision_jax.data.prompts import Answer
from revision_jax.data.shown import Out, Shapes
from revision_jax.data.targets import Target, Targets
from revision_jax.data.window_examples import draw_start
from revision_jax.data.windows import overlaps_any


class CropExamples:
    """Examples of such groups. A contrastive one has no crops (random windows alone), or another question (`swap`, `query_swap`)."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, contrastive: Contrastive, late: bool):
        """Raises ConfigError where the stage's numbers contradict the level's."""
        self.shape = GroupShape(config, stage, targets, late)
        self.stage, self.targets, self.contrastive = stage, targets, contrastive

    @property
    def shapes(self) -> Shapes:
        return self.shape.shapes

    def fill(self, rng: np.random.Generator, target: Target, absent: bool, out: Out) -> tuple[TrainQuestion, Answer]:
        """The arrays of an example; what is asked about them, and the answer."""
        film, span = target.film, self.shape.below.span_s
        zoom, taken = self.shape.zoom(rng), self.targets.corpus.questions(target.video).taken(target.question)
        free = negatives.free_starts(taken, film.count, film.rate, span)
        size = self.shape.windows // zoom
        strategy = negatives.strategy(rng, self.stage.negatives) if absent else ""
        fewest, most = self.stage.examples.crops
        crops = min(size, int(rng.integers(fewest, most + 1)))
        if absent and strategy not in QUESTIONS and len(free):  # a film that the event fills has no window without it: then another question is asked
            crops = 0
        others = self._some(rng, free, size - crops)
        place = int(rng.integers(len(others) + 1))
        around = [self._around(rng, target) for _ in range(crops)]
        starts = np.asarray([*others[:place], *around, *others[place:]], np.int64) / film.rate
        self.shape.show(film, np.repeat(starts, zoom), 0.0, out)
        if not absent:
            return target.question, (place * zoom, (place + crops) * zoom - 1)
        if not crops:
            return target.question, None
        answered = lambda question: any(overlaps_any(self._taken(target, question), start, start + span) for start in starts)
        return self.contrastive.question(rng, target, answered, strategy == "swap"), None

    def _around(self, rng: np.random.Generator, target: Target) -> int:
        """The first frame of a crop that holds the event, or lies in it where it is longer."""
        begin, end = target.moment
        low, high = sorted((end - self.shape.below.span_s, begin))
        return draw_start(rng, target.film, self.shape.below.span_s, low, high)

    def _taken(self, target: Target, question: TrainQuestion) -> tuple:
        return self.targets.corpus.questions(target.video).taken(question)

    @staticmethod
    def _some(rng: np.random.Generator, free: np.ndarray, count: int) -> list[int]:
        """So many of the free starts, in order of time, as different as they can be."""
        if not len(free):
            return []
        several = rng.choice(free, count, replace=False) if len(free) >= count else rng.choice(free, count)
        return np.sort(several).tolist()
