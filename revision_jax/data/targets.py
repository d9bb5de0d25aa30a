"""What each example is about: a question and one of its moments.

Annotated films (`asking.Listed`) have so many pairs of a question and a moment. Example after example goes through all of them in a random order, then
through all of them again in another one: in an epoch none is seen twice. Films of the rendered world (`asking.Scripted`) have no end of questions; there,
every example draws one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from revision_jax.data.asking import TrainQuestion, worded
from revision_jax.data.corpus import Corpus, Film
from revision_jax.data.permutation import permuted
from revision_jax.data.windows import Moment
from revision_jax.errors import UserError

TRIES = 16  # questions drawn before a film is given up


@dataclass(frozen=True)
class Target:
    """A question of a film, and one of its moments."""

    video: int  # its number in the corpus
    film: Film
    question: TrainQuestion
    moment: Moment


class Targets:
    """The pairs of question and moment of a stage. Picklable; threads may share it."""

    def __init__(self, corpus: Corpus, key: str, *, patch: bool = False, longest_s: float = float("inf"), min_duration_s: float = 0.0):
        """key: seed and stage, which the order follows from. patch: videos with patch features alone. longest_s: events longer than this are left out.

        Raises UserError where nothing is left.
        """
        self.corpus, self.patch, self.longest_s, self._key = corpus, patch, longest_s, key
        videos, weights, pairs = [], [], [np.zeros((0, 3), np.int32)]
        endless = False
        for number, video in enumerate(corpus.videos):
            if (patch and video.patch_store is None) or video.duration_s < min_duration_s:
                continue
            questions = corpus.questions(number)
            own: list[tuple[int, int, int]] = []
            if questions.answered is None:
                endless = True
            else:
                own = [(number, q, m) for q, one in enumerate(questions.answered) for m, moment in enumerate(one.moments) if self._fits(moment)]
            weight = questions.weight if questions.answered is None else len(own)
            if weight > 0:
                videos.append(number)
                weights.append(weight)
                pairs.append(np.asarray(own, np.int32).reshape(-1, 3))
        if not videos:
            kind = f"{'patch features and ' if patch else ''}a question with a moment"
            limits = [f"of at most {longest_s:g} s"] * (longest_s < float("inf")) + [f"in a video of at least {min_duration_s:g} s"] * (min_duration_s > 0)
            raise UserError(" ".join(["no training video has", kind, *limits]))
        self.videos = np.asarray(videos)
        self._weights = np.asarray(weights, np.float64) / sum(weights)
        self._pairs = None if endless else np.concatenate(pairs)

    @property
    def epoch(self) -> int | None:
        """Pairs of an epoch; None where there is no end of them."""
        return None if self._pairs is None else len(self._pairs)

    def at(self, number: int, rng: np.random.Generator) -> Target:
        """What the stage's example `number` is about. rng draws the wording, and everything where there is no end of questions."""
        if self._pairs is None:
            return self.any(rng)
        epoch, index = divmod(number, len(self._pairs))
        key = hashlib.blake2b(f"{self._key} {epoch}".encode(), digest_size=16).digest()
        return self._target(self._pairs[permuted(index, len(self._pairs), key)], rng)

    def any(self, rng: np.random.Generator) -> Target:
        """Any of them, whatever was seen before."""
        if self._pairs is not None:
            return self._target(self._pairs[rng.integers(len(self._pairs))], rng)
        for _ in range(TRIES):
            video = int(rng.choice(self.videos, p=self._weights))
            film, question = self.film(video), self.corpus.questions(video).present(rng)
            inside = [moment for moment in question.moments if moment[0] < film.duration_s and self._fits(moment)]
            if inside:
                return Target(video, film, question, inside[rng.integers(len(inside))])
        raise UserError(f"{self.corpus.videos[video].video_id}: its moments lie beyond the end of its features ({film.duration_s:.0f} s)")

    def film(self, video: int) -> Film:
        """The frames of a video at the rate that the stage reads."""
        return self.corpus.patch_film(video) if self.patch else self.corpus.film(video)

    def _fits(self, moment: Moment) -> bool:
        return moment[1] - moment[0] <= self.longest_s

    def _target(self, pair: np.ndarray, rng: np.random.Generator) -> Target:
        video, number, which = map(int, pair)
        film, question = self.film(video), self.corpus.questions(video).answered[number]
        moment = question.moments[which]
        if moment[0] >= film.duration_s:
            name = self.corpus.videos[video].video_id
            raise UserError(f"{name}: {question.query[:60]!r} happens at {moment[0]:g} s, beyond the end of its features ({film.duration_s:.1f} s)")
        return Target(video, film, worded(rng, question), moment)
