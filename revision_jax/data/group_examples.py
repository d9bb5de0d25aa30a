"""Examples that show a group of windows of the level's grid, as a search does, and ask which of them hold a moment (sparse, nested; stage 2).

A nested group's slots are runs of windows. Where one film has fewer than the group holds, runs of other films stand around it, in which the question has no
answer. `crop_examples.py` makes ReVisionLLM's own kind of group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from revision_jax.config import ConfigError, ExperimentConfig, PromptConfig, StageConfig
from revision_jax.data import negatives
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.contrastive import Contrastive
from revision_jax.data.corpus import Film
from revision_jax.data.prompts import Answer
from revision_jax.data.shown import Frames, Out, Shapes
from revision_jax.data.targets import Target, Targets
from revision_jax.data.windows import grid_index, overlaps_any, slot_frames, window_count, window_span

SHORTEST_CROP = 4  # windows (or runs, then 1) of the smallest group


@dataclass(frozen=True)
class _Piece:
    """Consecutive windows of one film: where they start, in its frames."""

    video: int
    film: Film
    starts: Int[np.ndarray, "n"]


class GroupShape:
    """Windows of a group, each shown by `frames` frames: what grids and crops have in common."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, late: bool):
        """Raises ConfigError where the stage's numbers contradict the level's."""
        self.level = config.grounding.level(stage.level)
        nested = self.level.kind == "nested"
        self.below = config.grounding.below(self.level.name) if nested else self.level
        self.run = self.below.run_length(self.level) if nested else 1
        self.windows = stage.windows or self.level.tokens * self.run
        self.prompt: PromptConfig = stage.prompt or self.level.prompt
        self.zooms = stage.examples.zooms
        if self.windows % self.run or self.windows // self.run > self.level.tokens:
            wanted = f"a multiple of {self.run}, at most {self.level.tokens * self.run}"
            raise ConfigError(f"stages.{stage.name}.windows: must be {wanted}, is {self.windows}")
        if self.zooms != (1,) and (nested or max(self.zooms) > self.windows):
            raise ConfigError(f"stages.{stage.name}.examples.zooms: must be at most the {self.windows} windows of a sparse group, are {self.zooms}")
        self.frames = Frames(targets.film(int(targets.videos[0])), late)

    @property
    def shapes(self) -> Shapes:
        return {**self.frames.shapes(self.windows, self.below.frames or self.below.tokens), "window_mask": ((self.windows,), "bool")}

    def show(self, film: Film, start_s: Float[np.ndarray, "n"], origin_s: float, out: Out, first: int = 0) -> None:
        """Windows that begin at `start_s` into the slots from `first` on."""
        below = self.below
        index = slot_frames(start_s, below.span_s, below.frames or below.tokens, film.rate, film.count, below.sampling)
        rows = {name: array[first : first + len(start_s)] for name, array in out.items() if name in ("frames", "tokens", "frame_mask", "times", "window_mask")}
        self.frames.fill(film, index, origin_s, rows)
        rows["window_mask"][:] = rows["frame_mask"].any(1)

    def zoom(self, rng: np.random.Generator) -> int:
        """How often each window of an example stands in a row."""
        return self.zooms[int(rng.integers(len(self.zooms)))] if len(self.zooms) > 1 else self.zooms[0]


class GroupExamples:
    """Windows side by side and a moment among them; or a question that none of them answers."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, targets: Targets, contrastive: Contrastive, late: bool):
        """Raises ConfigError where the stage's numbers contradict the level's."""
        self.shape = GroupShape(config, stage, targets, late)
        self.stage, self.targets, self.contrastive, self.corpus = stage, targets, contrastive, targets.corpus
        self.run, self.below = self.shape.run, self.shape.below

    @property
    def shapes(self) -> Shapes:
        return self.shape.shapes

    def fill(self, rng: np.random.Generator, target: Target, absent: bool, out: Out) -> tuple[TrainQuestion, Answer]:
        """The arrays of an example; what is asked about them, and the answer."""
        zoom = self.shape.zoom(rng)
        pieces = self._pieces(rng, target, self._size(rng, zoom))
        slot = 0
        for piece in pieces:
            starts = np.repeat(piece.starts / piece.film.rate, zoom)
            self.shape.show(piece.film, starts, piece.starts[0] / piece.film.rate - slot * self.below.stride_s, out, slot)
            slot += self._runs(piece) * self.run * zoom
        if not absent:
            first, last = self._numbers(target, pieces)
            return target.question, (first * zoom, last * zoom + zoom - 1)
        # As `swap`: the windows stay, and of a question nothing may happen in any of them.
        near = negatives.strategy(rng, self.stage.negatives) in ("hard", "swap")
        answered = lambda question: any(self._answered(question, piece) for piece in pieces)
        return self.contrastive.question(rng, target, answered, near), None

    def _size(self, rng: np.random.Generator, zoom: int) -> int:
        """Windows of an example: all that the group holds, or for the stage's share of crops fewer (log-uniform, whole runs)."""
        runs = self.shape.windows // self.run // zoom
        least = min(runs, SHORTEST_CROP if self.run == 1 else 1)
        if rng.random() < self.stage.crop:
            runs = int(np.exp(rng.uniform(np.log(least), np.log(runs + 1))))
        return runs * self.run

    def _pieces(self, rng: np.random.Generator, target: Target, size: int) -> list[_Piece]:
        """The film's windows around the moment, in order, at a random place; a nested group is filled up with runs of other films.

        The first window's start is shifted by up to a stride, so that a moment's place among the windows differs from visit to visit.
        """
        film, below = target.film, self.below
        step = self.run * below.stride_s
        phase = int(rng.integers(max(1, round(below.stride_s * film.rate))))
        if target.moment[1] * film.rate < phase + 1 or film.duration_s - phase / film.rate < below.span_s:
            phase = 0
        count = self._count(film, phase)
        whole = -(-count // self.run) * self.run  # a film's last run may be cut
        room, size = size, min(size, whole)
        middle = 0.5 * (max(target.moment[0], phase / film.rate) + min(target.moment[1], film.duration_s)) - phase / film.rate
        if self.run == 1:
            holding = int((middle - 0.5 * below.span_s) / below.stride_s + 0.5)
        else:
            holding = int(middle / step) * self.run
        holding = min(max(holding, 0), count - 1)
        low, high = max(0, holding + self.run - size), min(holding, whole - size)
        first = int(rng.integers(low, high + 1)) // self.run * self.run
        own = _Piece(target.video, film, self._starts(film, phase, first, min(size, count - first)))
        if self.run == 1:
            return [own]
        return self._fill(rng, target, own, room // self.run - self._runs(own))

    def _fill(self, rng: np.random.Generator, target: Target, own: _Piece, room: int) -> list[_Piece]:
        """Runs of other films before and after, in which the question has no answer: nested groups are longer than a training film."""
        before = int(rng.integers(room + 1))
        others = self.targets.videos[self.targets.videos != target.video]
        result = [own]
        for count, ahead in ((before, True), (room - before, False)):
            for _ in range(4 * count):
                if count == 0 or not len(others):
                    break
                video = int(others[rng.integers(len(others))])
                film = self.targets.film(video)
                runs = min(count, -(-self._count(film, 0) // self.run))
                piece = _Piece(video, film, self._starts(film, 0, 0, min(runs * self.run, self._count(film, 0))))
                if not self._answered(target.question, piece):
                    result.insert(0 if ahead else len(result), piece)
                    count -= runs
        return result

    def _count(self, film: Film, phase: int) -> int:
        return window_count(film.duration_s - phase / film.rate, self.below.span_s, self.below.stride_s)

    def _starts(self, film: Film, phase: int, first: int, count: int) -> Int[np.ndarray, "n"]:
        """First frames of windows `first` .. `first + count - 1`; the film's last window is moved back to end with it, as in a search."""
        starts = phase + grid_index((first + np.arange(count)) * self.below.stride_s, film.rate)
        return np.minimum(starts, max(phase, film.count - round(self.below.span_s * film.rate)))

    def _runs(self, piece: _Piece) -> int:
        return -(-len(piece.starts) // self.run)

    def _answered(self, question: TrainQuestion, piece: _Piece) -> bool:
        begin, end = piece.starts[0] / piece.film.rate, piece.starts[-1] / piece.film.rate + self.below.span_s
        return overlaps_any(self.corpus.questions(piece.video).taken(question), begin, end)

    def _numbers(self, target: Target, pieces: list[_Piece]) -> tuple[int, int]:
        """(first, last) window, or run, that shows the target's moment."""
        slot = 0
        for piece in pieces:
            if piece.film is target.film:
                starts = piece.starts[:: self.run] / piece.film.rate
                span = self.shape.level.span_s if self.run > 1 else self.below.span_s
                found = window_span(starts, np.ones(len(starts), bool), span, target.moment)
                if found is not None:
                    return slot + found[0], slot + found[1]
            slot += self._runs(piece)
        raise AssertionError("a group was placed beside its moment")
