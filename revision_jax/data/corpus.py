"""The films a curriculum reads: an index of feature stores with what can be asked about each, and a bounded cache of their frames.

The index is `corpus.json` beside the stores (paths relative to it):
{"version": 1, "videos": [{"video_id", "duration_s", "store", "patch_store" | null, "seed" | null, "fps", "questions": [{"query", "kind", "moments",
"variants"}]}]}. A video with a `seed` is one of the rendered world: its script is made again from (seed, duration, fps) and questions are invented.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from revision_jax.config import ExperimentConfig
from revision_jax.data.asking import Listed, Questions, Scripted, TrainQuestion
from revision_jax.data.features import FeatureStore
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.world import WORLD_VERSION
from revision_jax.errors import UserError

INDEX = "corpus.json"
VERSION = 1
BLOCK_S = 240.0  # seconds of a film that are cached or dropped together
MEMORY_MB = 3072  # of cached frames, by default: 24 hours at one frame a second with 25 tokens of 96 are 420 MB


@dataclass(frozen=True)
class TrainVideo:
    video_id: str
    duration_s: float
    store: Path
    patch_store: Path | None = None  # at the patch level's rate, where there is one
    questions: tuple[TrainQuestion, ...] = ()
    seed: int | None = None  # of the rendered world's script
    fps: int = 5  # of that script


class _Cache:
    """Arrays by key, the least recently used dropped beyond a number of bytes. Threads may share it; processes each have their own."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = make()  # outside of the lock: another thread may read meanwhile; the worst case is one block read twice
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self.bytes += array.nbytes
            while self.bytes > self.limit and len(self._arrays) > 1:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __getstate__(self) -> dict:
        return {"limit": self.limit}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["limit"])


class Film:
    """A feature store read by frame number through the cache. `store` needs `header`, `frames`, `read_frames` and `times` of `FeatureStore`."""

    def __init__(self, store: Any, cache: _Cache | None = None):
        self.store = store
        self.rate: float = float(store.header.rate)
        self.count: int = int(store.frames)
        self.arrays: dict[str, tuple] = dict(store.header.arrays)
        self.times: Float64[np.ndarray, "T"] = np.asarray(store.times(), np.float64)
        self._cache = cache or _Cache(MEMORY_MB << 20)
        self._key = str(getattr(store, "path", id(store)))
        self._block = max(1, round(BLOCK_S * self.rate))

    @property
    def duration_s(self) -> float:
        """Seconds that the frames stand for: each for one tick."""
        return self.count / self.rate

    def gather(self, index: Int[np.ndarray, "*b"], name: str) -> np.ndarray:
        """Array `name` of the frames `index` [*b], any order, repeats allowed -> [*b, ...]; zeros where a number lies outside of the film."""
        flat = np.asarray(index).reshape(-1)
        shape, dtype = self.arrays[name]
        real = (flat >= 0) & (flat < self.count)
        blocks = np.where(real, flat // self._block, -1)
        out = np.zeros((len(flat), *shape), dtype)
        for block in np.unique(blocks):
            if block >= 0:
                rows = np.flatnonzero(blocks == block)
                local = flat[rows] - block * self._block
                # consecutive frames are the usual case, and a slice is twice as fast as a list of rows
                if len(rows) == rows[-1] - rows[0] + 1 and (np.diff(local) == 1).all():
                    out[rows[0] : rows[-1] + 1] = self._load(name, int(block))[local[0] : local[-1] + 1]
                else:
                    out[rows] = self._load(name, int(block))[local]
        return out.reshape(*np.shape(index), *shape)

    def times_of(self, index: Int[np.ndarray, "*b"]) -> Float64[np.ndarray, "*b"]:
        """True times of frames; outside of the film, those of the ticks."""
        inside = np.clip(index, 0, max(0, self.count - 1))
        return np.where(inside == index, self.times[inside], np.asarray(index) / self.rate)

    def unit_frames(self) -> Float32[np.ndarray, "T E"]:
        """The frame vectors of the whole film, at unit length."""

        def make() -> np.ndarray:
            vectors = self.gather(np.arange(self.count), "frame").astype(np.float32)
            return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)

        return self._cache.get((self._key, "unit"), make)

    def _load(self, name: str, block: int) -> np.ndarray:
        start = block * self._block
        return self._cache.get((self._key, name, block), lambda: self.store.read_frames(start, min(start + self._block, self.count), (name,))[1][name])


class Corpus:
    """Films with questions. Stores are opened when first read, scripts made when first asked; safe to share between threads, and picklable."""

    def __init__(self, videos: Iterable[TrainVideo], memory_mb: int = MEMORY_MB, open_store: Callable[[Path], Any] = FeatureStore):
        """Raises UserError if there is no video."""
        self.videos: tuple[TrainVideo, ...] = tuple(videos)
        if not self.videos:
            raise UserError(f"{INDEX}: lists no video; at least one is needed")
        self._open_store = open_store
        self._cache = _Cache(memory_mb << 20)
        self._films: dict[Path, Film] = {}
        self._questions: dict[int, Questions] = {}

    @staticmethod
    def open(config: ExperimentConfig, directory: str | Path, memory_mb: int = MEMORY_MB) -> Corpus:
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
            corpus = Corpus([_video(entry, index.parent) for entry in values["videos"]], memory_mb)
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
        if path not in self._films:
            self._films.setdefault(path, Film(self._open_store(path), self._cache))
        return self._films[path]

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
