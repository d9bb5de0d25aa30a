"""Examples of the grounding stages: one per index, a pure function of (seed, stage, index).

An example is a window (dense, patch, presence) or a group of windows (sparse, nested) of a film, a question, and the answer in slot numbers. The
stage's share of them is contrastive: the window or the question is changed so that the answer is "not present" (`negatives.py`). Every array has
a static shape that follows from the config; T frames, N tokens of a frame, W windows, S text positions, E feature width:

    dense     frames [T E] f16, tokens [T N E] f16, frame_mask [T], times [T] f32 (true seconds from the window's start)
    sparse    frames [W T E], tokens [W T N E], frame_mask [W T], times [W T], window_mask [W]; answers name windows
    nested    as sparse with W = runs * windows of a run, one run after the other; answers name runs
    presence  as sparse with W = 1; the answer is yes or no
    patch     tokens [T N E], change [T N] f16, frame_mask [T], times [T]
    all       query_ids, query_mask, after_ids, after_mask, answer_ids, answer_mask [S], weight [] f32

Where the config compares frame vectors (`similarity="pooled"`) tokens have N = 0. Slots outside of the film are zeros under a False mask.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig, StageConfig
from revision_jax.data import negatives, prompts
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, Film
from revision_jax.data.pipeline import Batch, stack
from revision_jax.data.pretraining import PretrainSource
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.data.windows import Moment, frame_span, grid_index, instants, overlaps_any, shows, slot_times, window_count, window_span
from revision_jax.errors import UserError

TRIES = 16  # questions tried before an absent example is given up
SHORTEST_CROP = 4  # windows (or runs, then 1) of the smallest group


def make_source(config: ExperimentConfig, stage: StageConfig, corpus: Corpus | None, tokenizer: Tokenizer, seed: int) -> Curriculum | PretrainSource:
    """What a stage is trained on: pictures for `pretrain` and `language` (no corpus needed), windows of the corpus otherwise."""
    if stage.task in ("pretrain", "language"):
        return PretrainSource(config, stage, tokenizer, seed)
    if corpus is None:
        raise UserError(f"stages.{stage.name}: needs a corpus")
    return Curriculum(config, stage, corpus, tokenizer, seed)


@dataclass(frozen=True)
class _Target:
    """What an example is about: a question of a film, and one of its moments."""

    video: int
    film: Film
    question: TrainQuestion
    moment: Moment


@dataclass(frozen=True)
class _Piece:
    """Consecutive windows of one film: where they start, in its frames."""

    video: int
    film: Film
    starts: Int[np.ndarray, "n"]


class Curriculum:
    """Examples of one stage. Picklable; threads may share it."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, corpus: Corpus, tokenizer: Tokenizer, seed: int):
        """Raises UserError where the corpus cannot serve the stage, ConfigError where the stage's numbers contradict the level's."""
        self.config, self.stage, self.corpus, self.tokenizer, self.seed = config, stage, corpus, tokenizer, seed
        self.level = config.grounding.level(stage.level)
        self.late = config.decoder.signal.enabled and config.decoder.signal.similarity == "late"
        self._key = int.from_bytes(hashlib.blake2b(stage.name.encode(), digest_size=8).digest(), "little")
        if stage.absent > 0:
            negatives.strategy(np.random.default_rng(0), stage.negatives)  # raises early
        self._below = config.grounding.below(self.level.name) if self.level.kind == "nested" else self.level
        self._run = self._below.run_length(self.level) if self.level.kind == "nested" else 1
        self._windows = stage.windows or self.level.tokens * self._run
        if self._windows % self._run or self._windows // self._run > self.level.tokens:
            raise ConfigError(f"stages.{stage.name}.windows: must be a multiple of {self._run}, at most {self.level.tokens * self._run}, is {self._windows}")
        patch = self.level.kind == "patch"
        videos = [number for number, video in enumerate(corpus.videos) if not patch or video.patch_store is not None]
        weights = np.array([corpus.questions(number).weight for number in videos], np.float64)
        if not weights.sum() > 0:
            raise UserError(f"stages.{stage.name}: no training video has {'patch features and ' if patch else ''}a question with a moment")
        self._videos, self._weights = np.array(videos), weights / weights.sum()

    # ------------------------------------------------------------------------------------------------------------------ the public part

    def example(self, index: int) -> Batch:
        """Example number `index` (see the module's text for its arrays)."""
        rng = np.random.default_rng([self.seed, self._key, index])
        absent = negatives.is_absent(index, self.stage.absent)
        if self.stage.task == "presence":
            return self._presence(rng, absent)
        return {"dense": self._dense, "sparse": self._group, "nested": self._group, "patch": self._patch}[self.level.kind](rng, absent)

    def batch(self, step: int) -> Batch:
        """Examples step * batch .. stacked: a leading axis of `stage.batch`."""
        return stack([self.example(step * self.stage.batch + row) for row in range(self.stage.batch)])

    # ------------------------------------------------------------------------------------------------------------------ window examples

    def _dense(self, rng: np.random.Generator, absent: bool) -> Batch:
        """The answer is the first moment that counts as shown (`windows.shows`); the rest of a film's moments are other windows' business."""
        cut = rng.random() < self.stage.cut
        target, start = self._positive(rng, self.level.span_s, cut)
        film, question, answer = target.film, target.question, None
        if absent:
            film, question, start = self._negative(rng, self.level, target, start)
        index, times, mask = self._slots(film, start, self.level.span_s, self.level.tokens)
        if not absent:
            begin = start / film.rate
            shown = [moment for moment in question.moments if shows(moment, begin, begin + self.level.span_s)]
            answer = self._named(times, mask, min([*shown, *([] if shown else [target.moment])]))
        arrays = {**self._frames(film, index), "frame_mask": mask, "times": (times - start / film.rate).astype(np.float32)}
        return {**arrays, **self._text(question, answer)}

    def _presence(self, rng: np.random.Generator, absent: bool) -> Batch:
        target, start = self._positive(rng, self._below.span_s, cut=True)
        film, question = target.film, target.question
        if absent:
            film, question, start = self._negative(rng, self._below, target, start)
        index, times, mask = self._slots(film, start, self._below.span_s, self._below.frames or self._below.tokens)
        arrays = {**self._frames(film, index), "frame_mask": mask, "times": (times - start / film.rate).astype(np.float32)}
        arrays = {name: array[None] for name, array in arrays.items()}
        return {**arrays, "window_mask": np.ones(1, bool), **self._text(question, not absent, presence=True)}

    def _patch(self, rng: np.random.Generator, absent: bool) -> Batch:
        """A few seconds around a boundary of a moment, start or end; the answer is the part of the moment that they show."""
        target = self._target(rng, patch=True)
        film, level = target.film, self.level
        if abs(film.rate - level.rate) > 1e-6:
            raise ConfigError(f"levels.{level.name}: {level.tokens} tokens in {level.span_s} s are {level.rate} a second; the patch features have {film.rate}")
        boundary = target.moment[int(rng.integers(2))]
        margin = 1.0 / level.rate  # at least a frame on each side
        start = self._draw_start(rng, film, level.span_s, boundary - level.span_s + margin, boundary - margin)
        question, answer = target.question, None
        if absent:
            film, question, start = self._negative(rng, level, target, start, patch=True)
        index, times, mask = self._slots(film, start, level.span_s, level.tokens)
        if not absent:
            answer = self._named(times, mask, target.moment)
        arrays = {
            "tokens": film.gather(index, "tokens"),
            "change": film.gather(index, "change"),
            "frame_mask": mask,
            "times": (times - start / film.rate).astype(np.float32),
        }
        return {**arrays, **self._text(question, answer)}

    def _target(self, rng: np.random.Generator, patch: bool = False) -> _Target:
        """A question of a random film (films weigh as much as they have questions) and one of its moments, all equally likely."""
        for _ in range(TRIES):
            video = int(rng.choice(self._videos, p=self._weights))
            film = self.corpus.patch_film(video) if patch else self.corpus.film(video)
            question = self.corpus.questions(video).present(rng)
            inside = [moment for moment in question.moments if moment[0] < film.duration_s]
            if inside:
                return _Target(video, film, question, inside[rng.integers(len(inside))])
        raise UserError(f"{self.corpus.videos[video].video_id}: its moments lie beyond the end of its features ({film.duration_s:.0f} s)")

    def _positive(self, rng: np.random.Generator, span_s: float, cut: bool) -> tuple[_Target, int]:
        """A target and the first frame of a window that shows it: the whole event where it fits and `cut` is not wanted, else enough of it."""
        target = self._target(rng)
        begin, end = target.moment
        if end - begin <= span_s and not cut:
            return target, self._draw_start(rng, target.film, span_s, end - span_s, begin)
        need = min(0.5 * (end - begin), 0.4 * span_s)
        return target, self._draw_start(rng, target.film, span_s, begin + need - span_s, end - need)

    def _draw_start(self, rng: np.random.Generator, film: Film, span_s: float, low_s: float, high_s: float) -> int:
        """A frame in [low, high] seconds, uniform, moved into the film."""
        low, high = int(np.ceil(low_s * film.rate - 1e-6)), int(np.floor(high_s * film.rate + 1e-6))
        last = max(0, film.count - round(span_s * film.rate))
        low, high = min(max(low, 0), last), min(max(high, 0), last)
        return int(rng.integers(low, high + 1)) if high > low else low

    def _negative(self, rng: np.random.Generator, level: LevelConfig, target: _Target, start: int, patch: bool = False) -> tuple[Film, TrainQuestion, int]:
        """(film, question, first frame) of a window that has nothing of what is asked; `start` is the positive's.

        The strategy is drawn by the stage's weights; where it has nothing to offer, the others follow, then another question.
        """
        drawn = negatives.strategy(rng, self.stage.negatives)
        for _ in range(TRIES):
            for name in (drawn, *(other for other in ("random", "cross_video", "swap") if other != drawn)):
                found = self._by_strategy(rng, name, level, target, start, patch)
                if found is not None:
                    return found
            target = self._target(rng, patch)
            start = self._draw_start(rng, target.film, level.span_s, target.moment[1] - level.span_s, target.moment[0])
        raise UserError(f"stages.{self.stage.name}.absent: the corpus has no window without what is asked; add longer or more videos, or set it to 0")

    def _by_strategy(
        self, rng: np.random.Generator, name: str, level: LevelConfig, target: _Target, start: int, patch: bool
    ) -> tuple[Film, TrainQuestion, int] | None:
        film, question, span = target.film, target.question, level.span_s
        questions = self.corpus.questions(target.video)
        if name == "swap":
            begin = start / film.rate
            found = negatives.unanswered(lambda: questions.swapped(rng, question), questions.taken, begin, begin + span)
            return None if found is None else (film, found, start)
        if name == "cross_video":
            others = self._videos[self._videos != target.video]
            if not len(others):
                return None
            other = int(others[rng.integers(len(others))])
            film = self.corpus.patch_film(other) if patch else self.corpus.film(other)
            free = negatives.free_starts(self.corpus.questions(other).taken(question), film.count, film.rate, span)
            found = negatives.random_window(rng, free)
            return None if found is None else (film, question, found)
        free = negatives.free_starts(questions.taken(question), film.count, film.rate, span)
        if name == "hard" and "frame" in film.arrays:
            seconds = np.arange(film.count) / film.rate
            event = (seconds >= target.moment[0]) & (seconds < target.moment[1])
            found = negatives.hard_window(rng, free, film.unit_frames(), event, round(span * film.rate))
        else:
            found = negatives.random_window(rng, free)
        return None if found is None else (film, question, found)

    # ------------------------------------------------------------------------------------------------------------------- group examples

    def _group(self, rng: np.random.Generator, absent: bool) -> Batch:
        """Windows side by side and a moment among them; or a question that none of them answers."""
        target = self._target(rng)
        size = self._size(rng)
        pieces = self._pieces(rng, target, size)
        question, answer = target.question, None
        if absent:
            question = self._unanswered(rng, target, pieces)
        else:
            answer = self._numbers(target, pieces)
        return {**self._gather(pieces), **self._text(question, answer)}

    def _size(self, rng: np.random.Generator) -> int:
        """Windows of an example: all that the group holds, or for the stage's share of crops fewer (log-uniform, whole runs)."""
        runs = self._windows // self._run
        least = min(runs, SHORTEST_CROP if self._run == 1 else 1)
        if rng.random() < self.stage.crop:
            runs = int(np.exp(rng.uniform(np.log(least), np.log(runs + 1))))
        return runs * self._run

    def _pieces(self, rng: np.random.Generator, target: _Target, size: int) -> list[_Piece]:
        """The film's windows around the moment, in order, at a random place; a nested group is filled up with runs of other films.

        The first window's start is shifted by up to a stride, so that a moment's place among the windows differs from visit to visit.
        """
        film, below = target.film, self._below
        step = self._run * below.stride_s
        phase = int(rng.integers(max(1, round(below.stride_s * film.rate))))
        if target.moment[1] * film.rate < phase + 1 or film.duration_s - phase / film.rate < below.span_s:
            phase = 0
        count = self._count(film, phase)
        whole = -(-count // self._run) * self._run  # a film's last run may be cut
        room, size = size, min(size, whole)
        middle = 0.5 * (max(target.moment[0], phase / film.rate) + min(target.moment[1], film.duration_s)) - phase / film.rate
        if self._run == 1:
            holding = int((middle - 0.5 * below.span_s) / below.stride_s + 0.5)
        else:
            holding = int(middle / step) * self._run
        holding = min(max(holding, 0), count - 1)
        low, high = max(0, holding + self._run - size), min(holding, whole - size)
        first = int(rng.integers(low, high + 1)) // self._run * self._run
        own = _Piece(target.video, film, self._starts(film, phase, first, min(size, count - first)))
        if self._run == 1:
            return [own]
        return self._fill(rng, target, own, room // self._run - self._runs(own))

    def _fill(self, rng: np.random.Generator, target: _Target, own: _Piece, room: int) -> list[_Piece]:
        """Runs of other films before and after, in which the question has no answer: nested groups are longer than a training film."""
        before = int(rng.integers(room + 1))
        others = self._videos[self._videos != target.video]
        result = [own]
        for count, ahead in ((before, True), (room - before, False)):
            for _ in range(4 * count):
                if count == 0 or not len(others):
                    break
                video = int(others[rng.integers(len(others))])
                film = self.corpus.film(video)
                runs = min(count, -(-self._count(film, 0) // self._run))
                piece = _Piece(video, film, self._starts(film, 0, 0, min(runs * self._run, self._count(film, 0))))
                if not self._answered(target.question, piece):
                    result.insert(0 if ahead else len(result), piece)
                    count -= runs
        return result

    def _count(self, film: Film, phase: int) -> int:
        return window_count(film.duration_s - phase / film.rate, self._below.span_s, self._below.stride_s)

    def _starts(self, film: Film, phase: int, first: int, count: int) -> Int[np.ndarray, "n"]:
        """First frames of windows `first` .. `first + count - 1`; the film's last window is moved back to end with it, as in a search."""
        starts = phase + grid_index((first + np.arange(count)) * self._below.stride_s, film.rate)
        return np.minimum(starts, max(phase, film.count - round(self._below.span_s * film.rate)))

    def _runs(self, piece: _Piece) -> int:
        return -(-len(piece.starts) // self._run)

    def _answered(self, question: TrainQuestion, piece: _Piece) -> bool:
        begin, end = piece.starts[0] / piece.film.rate, piece.starts[-1] / piece.film.rate + self._below.span_s
        return overlaps_any(self.corpus.questions(piece.video).taken(question), begin, end)

    def _unanswered(self, rng: np.random.Generator, target: _Target, pieces: list[_Piece]) -> TrainQuestion:
        """A question that no window of the group answers: one attribute away (`hard`, `swap`), or another film's (`random`, `cross_video`)."""
        near = negatives.strategy(rng, self.stage.negatives) in ("hard", "swap")
        own = self.corpus.questions(target.video)
        for attempt in range(8 * TRIES):
            if near and attempt < 2 * TRIES:
                question = own.swapped(rng, target.question if attempt < TRIES else own.present(rng))
            else:
                question = self._target(rng).question
            if question is not None and not any(self._answered(question, piece) for piece in pieces):
                return question
        raise UserError(f"stages.{self.stage.name}.absent: every question is answered in every group of windows; add videos, or set it to 0")

    def _numbers(self, target: _Target, pieces: list[_Piece]) -> tuple[int, int]:
        """(first, last) window, or run, that shows the target's moment."""
        slot = 0
        for piece in pieces:
            if piece.film is target.film:
                starts = piece.starts[:: self._run] / piece.film.rate
                span = self.level.span_s if self._run > 1 else self._below.span_s
                found = window_span(starts, np.ones(len(starts), bool), span, target.moment)
                if found is not None:
                    return slot + found[0], slot + found[1]
            slot += self._runs(piece)
        raise AssertionError("a group was placed beside its moment")

    def _gather(self, pieces: list[_Piece]) -> Batch:
        below = self._below
        frames, width = below.frames or below.tokens, self._windows
        film = pieces[0].film
        shape, dtype = film.arrays["frame"]
        batch: Batch = {
            "frames": np.zeros((width, frames, *shape), dtype), "frame_mask": np.zeros((width, frames), bool),
            "times": np.zeros((width, frames), np.float32), "window_mask": np.zeros(width, bool),
            "tokens": np.zeros((width, frames, *(film.arrays["tokens"][0] if self.late else (0, *shape))), dtype),
        }  # fmt: skip
        slot = 0
        for piece in pieces:
            rows = slice(slot, slot + len(piece.starts))
            offsets = grid_index(slot_times(0.0, below.span_s, frames), piece.film.rate)
            index = piece.starts[:, None] + offsets
            batch["frames"][rows] = piece.film.gather(index, "frame")
            if self.late:
                batch["tokens"][rows] = piece.film.gather(index, "tokens")
            batch["frame_mask"][rows] = (index >= 0) & (index < piece.film.count)
            origin = piece.starts[0] / piece.film.rate - slot * below.stride_s
            batch["times"][rows] = piece.film.times_of(index) - origin
            batch["window_mask"][rows] = batch["frame_mask"][rows].any(1)
            slot += self._runs(piece) * self._run
        return batch

    # ---------------------------------------------------------------------------------------------------------------------------- parts

    def _slots(
        self, film: Film, start: int, span_s: float, slots: int
    ) -> tuple[Int[np.ndarray, "T"], Float[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
        """Frame number, true time (seconds) and validity of each slot of a window; slots are snapped to the store's grid."""
        index = start + grid_index(slot_times(0.0, span_s, slots), film.rate)
        return index, film.times_of(index), (index >= 0) & (index < film.count)

    def _named(self, times: Float[np.ndarray, "T"], mask: Bool[np.ndarray, "T"], moment: Moment) -> tuple[int, int] | None:
        """The slots that the level's answer names for a moment."""
        return (instants if self.level.prompt.end == "instant" else frame_span)(times, mask, moment)

    def _frames(self, film: Film, index: Int[np.ndarray, "T"]) -> Batch:
        width = film.arrays["frame"][0]
        tokens = film.gather(index, "tokens") if self.late else np.zeros((len(index), 0, *width), np.float16)
        return {"frames": film.gather(index, "frame"), "tokens": tokens}

    def _text(self, question: TrainQuestion, answer: prompts.Answer, presence: bool = False) -> Batch:
        sizes, prompt = self.config.grounding, self.level.prompt
        query_ids, query_mask = prompts.encode_query(self.tokenizer, question.query, sizes.query_len, self.config.text.suffix)
        _, after_ids, after_mask = prompts.encode_prompt(self.tokenizer, prompt, question.query, sizes.prompt_len, presence)
        answer_ids, answer_mask = prompts.encode_answer(self.tokenizer, prompt, answer, sizes.answer_len)
        weight = self.stage.absent_weight if answer is None or answer is False else 1.0
        return {
            "query_ids": query_ids, "query_mask": query_mask, "after_ids": after_ids, "after_mask": after_mask,
            "answer_ids": answer_ids, "answer_mask": answer_mask, "weight": np.asarray(weight, np.float32),
        }  # fmt: skip

