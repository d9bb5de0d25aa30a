"""The films a curriculum reads: feature stores with what can be asked about each. Nothing of a film is kept in memory: the system keeps files itself.

The index is `corpus.json` beside the stores (paths relative to it):
{"version": 1, "videos": [{"video_id", "duration_s", "store", "patch_store" | null, "seed" | null, "fps", "questions": [{"query", "kind", "moments",
"variants"}]}]}. A video with a `seed` is one of the rendered world: its script is made again from (seed, duration, fps) and questions are invented.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from revision_jax.config import ExperimentConfig
from revision_jax.data.asking import Listed, Questions, Scripted, TrainQuestion
from revision_jax.data.features import FeatureStore
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.world import WORLD_VERSION
from revision_jax.errors import UserError

INDEX = "corpus.json"
VERSION = 1
OPEN_FILMS = 512  # files that are kept open; more than MAD's training films are
PIECE = 4096  # frames of a piece of a film that is gone through from end to end


@dataclass(frozen=True)
class TrainVideo:
    video_id: str
    duration_s: float
    store: Path
    patch_store: Path | None = None  # at the patch level's rate, where there is one
    questions: tuple[TrainQuestion, ...] = ()
    seed: int | None = None  # of the rendered world's script
    fps: int = 5  # of that script


_own = threading.local()


def _scratch(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A place for one block, this thread's until it asks again: pages that were used before are there already."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if len(getattr(_own, "bytes", b"")) < size:
        _own.bytes = np.empty(size, np.uint8)
    return _own.bytes[:size].view(dtype).reshape(shape)


class Film:
    """A feature store read by frame number. `store` needs `header`, `frames`, `starts`, `read_block` and `times` of `FeatureStore`."""

    def __init__(self, store: Any):
        self.store = store
        self.rate: float = float(store.header.rate)
        self.count: int = int(store.frames)
        self.arrays: dict[str, tuple] = dict(store.header.arrays)
        self._longest = int(np.diff(store.starts).max(initial=0))
        self._lengths: Float32[np.ndarray, "T"] | None = None

    @property
    def duration_s(self) -> float:
        """Seconds that the frames stand for: each for one tick."""
        return self.count / self.rate

    def gather(self, index: Int[np.ndarray, "*b"], name: str, out: np.ndarray | None = None) -> np.ndarray:
        """Array `name` of the frames `index` [*b], any order, repeats allowed -> [*b, ...], in `out` where it is given; zeros where a number lies outside.

        Each block of the store that is touched is read once, and each frame copied once from it: from the disk to the block, from the block to `out`.
        """
        flat = np.asarray(index).reshape(-1)
        shape, dtype = self.arrays[name]
        out = np.empty((*np.shape(index), *shape), dtype) if out is None else out
        rows = out.reshape(len(flat), *shape)
        starts = self.store.starts
        blocks = np.where((flat >= 0) & (flat < self.count), np.searchsorted(starts, flat, "right") - 1, -1)
        if not len(flat):
            return out
        cuts = np.asarray([0, *(np.flatnonzero(blocks[1:] != blocks[:-1]) + 1).tolist()])
        bounds = zip(np.minimum.reduceat(flat, cuts).tolist(), np.maximum.reduceat(flat, cuts).tolist(), strict=True)
        runs: dict[int, list[tuple[int, int, int, int]]] = {}  # of slots whose frames lie in one block: the first, the one behind the last, their frames
        for (low, high), block, (least, most) in zip(pairwise([*cuts.tolist(), len(flat)]), blocks[cuts].tolist(), bounds, strict=True):
            runs.setdefault(block, []).append((low, high, least, most))
        for low, high, _, _ in runs.pop(-1, ()):
            rows[low:high] = 0
        scratch = _scratch((self._longest, *shape), dtype)
        for block in sorted(runs):
            slots = runs[block]
            wanted = min(least for *_, least, _ in slots), max(most for *_, most in slots) + 1
            frames, base = self.store.read_block(name, block, *wanted, scratch)
            for low, high, _, _ in slots:
                np.take(frames, flat[low:high] - base, 0, rows[low:high], "clip")  # "raise" would go through a copy
        return out

    def times_of(self, index: Int[np.ndarray, "*b"]) -> Float64[np.ndarray, "*b"]:
        """True times of frames; outside of the film, those of the ticks."""
        ticks = np.asarray(index) / self.rate
        if getattr(self.store, "regular", False):
            return ticks
        inside = (index >= 0) & (index < self.count)
        if inside.any():
            first = int(index[inside].min())
            ticks[inside] = self.store.times(first, int(index[inside].max()) + 1)[index[inside] - first]
        return ticks

    def likeness(self, event: Bool[np.ndarray, "T"]) -> Float32[np.ndarray, "T"]:
        """Cosine of each frame vector to the mean direction of those of an event; read in pieces."""
        numbers = np.flatnonzero(event)
        shown = self.gather(numbers, "frame").astype(np.float32)
        mean = (shown / np.maximum(np.linalg.norm(shown, axis=-1, keepdims=True), 1e-6)).mean(0)
        products, lengths = np.empty(self.count, np.float32), np.empty(self.count, np.float32)
        for start in range(0, self.count, PIECE):
            piece = self.gather(np.arange(start, min(start + PIECE, self.count)), "frame").astype(np.float32)
            products[start : start + PIECE] = piece @ mean
            if self._lengths is None:
                lengths[start : start + PIECE] = np.linalg.norm(piece, axis=-1)
        self._lengths = np.maximum(lengths, 1e-6) if self._lengths is None else self._lengths
        return products / self._lengths


class Corpus:
    """Films with questions. Stores are opened when first read, scripts made when first asked; safe to share between threads, and picklable."""

    def __init__(self, videos: Iterable[TrainVideo], open_store: Callable[[Path], Any] = FeatureStore):
        """Raises UserError if there is no video."""
        self.videos: tuple[TrainVideo, ...] = tuple(videos)
        if not self.videos:
            raise UserError(f"{INDEX}: lists no video; at least one is needed")
        self._open_store = open_store
        self._lock = threading.Lock()
        self._films: OrderedDict[Path, Film] = OrderedDict()
        self._questions: dict[int, Questions] = {}

    @staticmethod
    def open(config: ExperimentConfig, directory: str | Path) -> Corpus:
        """Reads `directory`/corpus.json. Raises UserError for a missing or malformed index, and for features that do not fit the config."""
        index = Path(directory) / INDEX
        if not index.is_file():
            raise UserError(f"{index}: no such file; the training data has to be prepared first")
        try:
            values = json.loads(index.read_text(encoding="utf-8"))
            if values["version"] != VERSION:
                raise UserError(f"{index}: index of version {values['version']}, this program reads version {VERSION}; prepare the training data again")
            if values.get("world", WORLD_VERSION) != WORLD_VERSION:
                raise UserError(f"{index}: made from world version {values['world']}, this program has {WORLD_VERSION}; prepare the training data again")
            corpus = Corpus([_video(entry, index.parent) for entry in values["videos"]])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index}: not a corpus index ({type(error).__name__}: {error})") from None
        corpus._check(config)
        return corpus

    @staticmethod
    def write_index(directory: str | Path, videos: Iterable[TrainVideo]) -> Path:
        """Writes `directory`/corpus.json, complete or not at all; stores below the directory are named relative to it. Returns its path."""
        directory = Path(directory)
        index, partial = directory / INDEX, directory / f".{INDEX}.{os.getpid()}.partial"
        values = {"version": VERSION, "world": WORLD_VERSION, "videos": [_entry(video, directory) for video in videos]}
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, index)
        return index

    def film(self, number: int) -> Film:
        """The frames of video `number` at the rate that all levels but `patch` read."""
        return self._film(self.videos[number].store)

    def patch_film(self, number: int) -> Film | None:
        """The frames of video `number` at the patch level's rate, if they were stored."""
        path = self.videos[number].patch_store
        return None if path is None else self._film(path)

    def questions(self, number: int) -> Questions:
        """What video `number` can be asked."""
        if number not in self._questions:
            video = self.videos[number]
            made = Listed(video.questions) if video.seed is None else Scripted(make_script(video.seed, video.duration_s, video.fps))
            self._questions.setdefault(number, made)
        return self._questions[number]

    def _film(self, path: Path) -> Film:
        with self._lock:
            if path not in self._films:
                self._films[path] = Film(self._open_store(path))
            self._films.move_to_end(path)
            if len(self._films) > OPEN_FILMS:
                self._films.popitem(last=False)  # closed once nobody reads it any more
            return self._films[path]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_films", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _films=OrderedDict(), _lock=threading.Lock())

    def _check(self, config: ExperimentConfig) -> None:
        film, path = self.film(0), self.videos[0].store
        width = film.arrays.get("frame", ((0,), ""))[0][-1]
        if width != config.vision.output:
            raise UserError(f"{path}: frame vectors of width {width}, the config's are {config.vision.output}; prepare the training data again")
        if config.decoder.signal.enabled and config.decoder.signal.similarity == "late" and "tokens" not in film.arrays:
            raise UserError(f"{path}: holds no patch tokens, which signal.similarity='late' compares; prepare the training data again")


def _video(entry: dict, directory: Path) -> TrainVideo:
    questions = tuple(
        TrainQuestion(q["query"], tuple((float(s), float(e)) for s, e in q["moments"]), q.get("kind", "one"), tuple(q.get("variants", ())))
        for q in entry.get("questions", ())
    )
    patch = entry.get("patch_store")
    return TrainVideo(
        str(entry["video_id"]), float(entry["duration_s"]), directory / entry["store"], None if patch is None else directory / patch,
        questions, entry.get("seed"), int(entry.get("fps", 5)),
    )  # fmt: skip


def _entry(video: TrainVideo, directory: Path) -> dict:
    def name(path: Path | None) -> str | None:
        if path is None:
            return None
        path = Path(path)
        return path.relative_to(directory).as_posix() if path.is_relative_to(directory) else str(path)

    questions = [{"query": q.query, "kind": q.kind, "moments": [list(m) for m in q.moments], "variants": list(q.variants)} for q in video.questions]
    return {
        "video_id": video.video_id, "duration_s": video.duration_s, "store": name(video.store), "patch_store": name(video.patch_store),
        "seed": video.seed, "fps": video.fps, "questions": questions,
    }  # fmt: skip
