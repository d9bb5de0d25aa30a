"""Films made of features: one moment, cut out of its film, in a haystack of the film's rest, repeated until it is as long as it should be.

    film        [ rest a | moment | rest b ]
    haystack    a b a b a ... | moment | ... b a b a        the moment at a chosen depth, and nowhere else

So there is one target in hours of film of its own kind, and nothing is rendered or encoded for it. There are no pictures to look at: the patch level is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision_jax.errors import UserError
from revision_jax.evaluation import exam
from revision_jax.evaluation.datasets import Asked, Item
from revision_jax.experiments.bench import Bench, Films
from revision_jax.grounding.grounder import EncodedVideo, Grounder
from revision_jax.grounding.source import Source

MARGIN_S = 5.0  # of its surroundings that go with a moment
Piece = tuple[int, int]  # frames [first, stop) of the film


@dataclass(frozen=True, eq=False)
class Spliced:
    """Pieces of one film's features, one behind the other, as a source."""

    source: Source
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> str:
        return f"{self.source.key}/{hash(self.pieces)}"

    @property
    def rate(self) -> float:
        return self.source.rate

    @property
    def frames(self) -> int:
        return sum(stop - first for first, stop in self.pieces)

    @property
    def duration_s(self) -> float:
        return self.frames / self.rate

    def read_frames(self, first: int, stop: int, names: Iterable[str] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Times and arrays of frames first .. stop - 1, as `Source` has it."""
        names = None if names is None else tuple(names)
        stop = min(stop, self.frames)
        parts, at = [], 0
        for begin, end in self.pieces:
            low, high = max(first - at, 0), min(stop - at, end - begin)
            if low < high:
                parts.append(self.source.read_frames(begin + low, begin + high, names)[1])
            at += end - begin
        if not parts:
            parts = [self.source.read_frames(0, 0, names)[1]]
        return np.arange(first, stop) / self.rate, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def haystack(moment: tuple[float, float], frames: int, rate: float, length_s: float, depth: float) -> tuple[tuple[Piece, ...], tuple[float, float]]:
    """Pieces of a film of `frames` frames that make a haystack of length_s seconds, and where the moment lies in it. depth: 0 begins with it, 1 ends with it.

    Raises ValueError where the moment leaves nothing of the film, or does not fit into the length.
    """
    first, stop = max(0, math.floor((moment[0] - MARGIN_S) * rate)), min(frames, math.ceil((moment[1] + MARGIN_S) * rate))
    rest = tuple(piece for piece in ((0, first), (stop, frames)) if piece[0] < piece[1])
    fill = round(length_s * rate) - (stop - first)
    if not rest or fill < 0:
        raise ValueError(f"a moment of {moment[1] - moment[0]:g} s in a film of {frames / rate:g} s makes no haystack of {length_s:g} s")
    before = round(depth * fill)
    cycle = frames - (stop - first)
    pieces = (*_cycled(rest, cycle, 0, before), (first, stop), *_cycled(rest, cycle, before, fill))
    moved = before / rate - first / rate
    return pieces, (moment[0] + moved, moment[1] + moved)


def _cycled(rest: Sequence[Piece], cycle: int, start: int, end: int) -> list[Piece]:
    """Frames start .. end - 1 of the rest repeated for ever."""
    found, at = [], (start // cycle) * cycle if cycle else 0
    while at < end:
        for first, stop in rest:
            low, high = max(start - at, 0), min(end - at, stop - first)
            if low < high:
                found.append((first + low, first + high))
            at += stop - first
    return found


@dataclass(frozen=True)
class Needles:
    """`each` questions with one moment of every film, each in a haystack of its own. depth: None spreads them evenly over all depths."""

    films: Films
    length_s: float
    depth: float | None = None
    each: int = 1

    def settings(self) -> dict[str, Any]:
        return {"needles": self.films.settings(), "length_s": self.length_s, "depth": self.depth, "each": self.each, "margin_s": MARGIN_S}

    def items(self, bench: Bench) -> list[Item]:
        return [item for item, _ in self._placed(bench).values()]

    def opened(self, bench: Bench) -> exam.Opened:
        placed = self._placed(bench)

        def open_features(grounder: Grounder, item: Item) -> EncodedVideo:
            video = grounder.encode(item.video)
            source = Spliced(video.source, placed[item.name][1])
            return EncodedVideo(str(item.video), source.duration_s, 0.0, source, None)

        return open_features

    def _placed(self, bench: Bench) -> dict[str, tuple[Item, tuple[Piece, ...]]]:
        """By name: an item with its one question, and the pieces of its film. Raises UserError where no film has a question with one moment."""
        rate = bench.config.grounding.rate
        chosen = [(film, asked) for film in self.films.items(bench) for asked in [q for q in film.questions if q.kind == "one"][: self.each]]
        if not chosen:
            raise UserError("--videos: none of the films has a question with exactly one moment; give more or longer ones")
        placed = {}
        for number, (film, asked) in enumerate(chosen):
            depth = (number + 0.5) / len(chosen) if self.depth is None else self.depth
            pieces, truth = haystack(asked.truth[0], math.floor(film.duration_s * rate + 1e-6), rate, self.length_s, depth)
            name = f"{film.name}-{asked.query_id}"
            placed[name] = (Item(name, film.video, self.length_s, (Asked(asked.query_id, asked.query, "one", (truth,)),)), pieces)
        return placed
