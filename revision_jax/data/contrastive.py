"""Contrastive examples: a window that does not show what is asked, or a question that is not answered by what is shown.

    random       another window of the film                 the question stays
    hard         one that looks like the event              "
    semi_hard    one that a named checkpoint scored high    "
    cross_video  a window of another film                   "
    swap         the window stays                           one attribute changed (rendered world), or one listed as absent
    query_swap   "                                          another one, of this film or another

A strategy is drawn by the stage's weights. Where it has nothing to offer, the others follow, then another question. Nothing that is shown overlaps any moment
of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from revision_jax.config import StageConfig
from revision_jax.data import negatives
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Film
from revision_jax.data.scores import Scores
from revision_jax.data.targets import TRIES, Target, Targets
from revision_jax.errors import UserError

FALLBACKS = ("random", "cross_video", "swap", "query_swap")
QUESTIONS = ("swap", "query_swap")  # strategies that change the question
Window = tuple[Film, TrainQuestion, int]  # what is shown from which frame on, and what is asked


class Contrastive:
    """Finds them for one stage."""

    def __init__(self, stage: StageConfig, targets: Targets):
        """Raises UserError for scores that are missing or of another checkpoint, ValueError where no strategy has a weight."""
        self.stage, self.targets, self.corpus = stage, targets, targets.corpus
        if stage.absent > 0:
            negatives.strategy(np.random.default_rng(0), stage.negatives)  # raises early
        scored = any(name == "semi_hard" and weight > 0 for name, weight in stage.negatives)
        self.scores = Scores(stage.examples.scores, stage.examples.scored_by) if scored else None

    def window(self, rng: np.random.Generator, target: Target, start: int, span_s: float, place: Callable[[Target], int]) -> Window:
        """A window of span_s that has nothing of what is asked. `start`: the positive's first frame; place(target): where another target's would begin."""
        drawn = negatives.strategy(rng, self.stage.negatives)
        for _ in range(TRIES):
            for name in (drawn, *(other for other in FALLBACKS if other != drawn)):
                found = self._by(name, rng, target, start, span_s)
                if found is not None:
                    return found
            target = self.targets.any(rng)
            start = place(target)
        raise UserError(f"stages.{self.stage.name}.absent: the corpus has no window without what is asked; add longer or more videos, or set it to 0")

    def question(self, rng: np.random.Generator, target: Target, answered: Callable[[TrainQuestion], bool], near: bool) -> TrainQuestion:
        """A question that a group of windows does not answer. near: one attribute away, where there is such a one; otherwise any other."""
        own = self.corpus.questions(target.video)
        for attempt in range(8 * TRIES):
            if near and attempt < 2 * TRIES:
                question = own.swapped(rng, target.question if attempt < TRIES else own.present(rng))
            else:
                question = self.targets.any(rng).question
            if question is not None and not answered(question):
                return question
        raise UserError(f"stages.{self.stage.name}.absent: every question is answered in every group of windows; add videos, or set it to 0")

    def _by(self, name: str, rng: np.random.Generator, target: Target, start: int, span_s: float) -> Window | None:
        film, question = target.film, target.question
        questions = self.corpus.questions(target.video)
        if name in QUESTIONS:
            begin = start / film.rate
            draw = (lambda: questions.swapped(rng, question)) if name == "swap" else lambda: self._another(rng, target)
            found = negatives.unanswered(draw, questions.taken, begin, begin + span_s)
            return None if found is None else (film, found, start)
        if name == "cross_video":
            others = self.targets.videos[self.targets.videos != target.video]
            if not len(others):
                return None
            other = int(others[rng.integers(len(others))])
            film, questions = self.targets.film(other), self.corpus.questions(other)
        free = negatives.free_starts(questions.taken(question), film.count, film.rate, span_s)
        found = self._start(name, rng, target, free, span_s)
        return None if found is None else (film, question, found)

    def _start(self, name: str, rng: np.random.Generator, target: Target, free: np.ndarray, span_s: float) -> int | None:
        film, length = target.film, round(span_s * target.film.rate)
        if name == "semi_hard":
            found = None if self.scores is None else self.scores.of(self.corpus.videos[target.video].video_id, target.question.query)
            if found is None:
                return None
            places = np.floor(found.windows[:, 0] * film.rate).astype(np.int64)
            return negatives.scored_window(rng, free, places, found.windows[:, 1], found.own, length)
        if name == "hard" and "frame" in film.arrays:
            seconds = np.arange(film.count) / film.rate
            event = (seconds >= target.moment[0]) & (seconds < target.moment[1])
            return negatives.hard_window(rng, free, film.likeness(event), length) if event.any() else negatives.random_window(rng, free)
        return negatives.random_window(rng, free)

    def _another(self, rng: np.random.Generator, target: Target) -> TrainQuestion | None:
        """Any other question, of the same film as often as of any."""
        question = self.corpus.questions(target.video).present(rng) if rng.random() < 0.5 else self.targets.any(rng).question
        return None if question.query == target.question.query else question
