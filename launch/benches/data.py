"""`launch.bench data`: how fast and how lean the grounding stages are read, at the shapes of MAD (5 frames a second, 768 numbers of float16 a frame).

speed: examples and megabytes a second of stage 1-A (a window of 250 frames), 1-B (the same as one window of a group) and 2 (100 windows, 38 MB an example),
with 0, 1 and 2 worker processes, beside a plain PyTorch DataLoader that makes the same examples: each window one slice of the film's dataset in the owners'
HDF5 file (or of a mapped .npy file), then the wanted frames of it, then `default_collate`. Both make the same batches, bit by bit, which is checked. Runs take
turns, A B A B; figures are medians of them.

memory (--long): a corpus of 20 GB is written, all of it is read by stages 1-A and 2, and it is deleted again; resident memory is that of all processes
together, pages that they share counted once (PSS), ten times a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from revision_jax.config import ExperimentConfig
from revision_jax.data.corpus import Corpus, Film, TrainVideo
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, store_path
from revision_jax.data.tokenizer import Tokenizer

RATE, WIDTH = 5.0, 768
FILM_S = 7200.0  # of a film
FILMS = 12  # of the corpus that speed is measured on: 0.7 GB, which stays in the system's memory; so do the plain loader's files
GIGABYTES = 20.0  # of the corpus that memory is measured on
QUERIES = 574  # of a film, as many as MAD has
STAGES = {"1a": 64, "1b": 64, "2": 4}  # and their batches here
EXAMPLES = {"1a": 4096, "1b": 4096, "2": 96}  # of a run
WORKERS = (0, 1, 2)
REPEATS = 3
WORDS = ("she", "he", "walks", "looks", "opens", "closes", "door", "window", "car", "road", "night", "young", "man", "woman", "slowly", "away", "into", "with")


def data(options: argparse.Namespace) -> dict[str, float | int]:
    """The figures, by name."""
    return {**speed(options.workdir / "data"), **(memory(options.workdir / "data-20gb") if options.long else {})}


# ------------------------------------------------------------------------------------------------------------------------------ speed


def speed(folder: Path) -> dict[str, float | int]:
    """Examples and megabytes a second, and their ratio to the plain loaders'."""
    videos = write_corpus(folder, FILMS, plain=True)
    config, tokenizer = setting()
    figures: dict[str, float | int] = {}
    for name, batch in STAGES.items():
        ours = curriculum(config, tokenizer, name, Corpus(videos))
        loaders = {"HDF5": curriculum(config, tokenizer, name, PlainCorpus(videos, folder / "features.h5"))}
        loaders["mapped .npy"] = curriculum(config, tokenizer, name, PlainCorpus(videos, folder))
        for other in loaders.values():
            _same(ours.example(3), other.example(3))
        size = sum(array.nbytes for array in ours.example(0).values())
        count = EXAMPLES[name]
        for workers in WORKERS:
            seconds: dict[str, list[float]] = {kind: [] for kind in ("ours", *loaders)}
            for _ in range(REPEATS):
                seconds["ours"].append(_timed(_ours(ours, batch, count, workers), count // batch))
                for kind, other in loaders.items():
                    seconds[kind].append(_timed(_torch(other, batch, count, workers), count // batch))
            each = {kind: statistics.median(values) * batch for kind, values in seconds.items()}
            where = f"{name}, {workers} workers"
            figures[f"{where}: examples a second"] = batch / statistics.median(seconds["ours"])
            figures[f"{where}: MB a second"] = size * batch / statistics.median(seconds["ours"]) / 1e6
            for kind in loaders:
                figures[f"{where}: times as fast as a plain DataLoader ({kind})"] = each[kind] / each["ours"]
    return figures


def setting() -> tuple[ExperimentConfig, Tokenizer]:
    """MAD's preset, and a tokenizer that knows the bench's words."""
    from configs.revisionllm_7b_mad import get_config
    from revision_jax.data.tokenizer import build_word_tokenizer

    config = get_config()
    texts = [text for level in config.grounding.levels for text in (level.prompt.before, level.prompt.after, level.prompt.answer, level.prompt.absent)]
    return config, build_word_tokenizer([" ".join(WORDS), *texts], 256, 2048)


def curriculum(config: ExperimentConfig, tokenizer: Tokenizer, name: str, corpus: Any) -> Curriculum:
    stage = next(stage for stage in config.train.stages if stage.name == name)
    return Curriculum(config, stage, corpus, tokenizer, 0)


def _ours(examples: Curriculum, batch: int, count: int, workers: int) -> Iterator[dict]:
    from revision_jax.data.pipeline import batches

    return batches(examples, batch=batch, steps=count // batch, workers=workers)


def _torch(examples: Curriculum, batch: int, count: int, workers: int) -> Iterator[dict]:
    from torch.utils.data import DataLoader

    return iter(DataLoader(Plain(examples, count), batch_size=batch, num_workers=workers))


def _timed(stream: Iterator[dict], steps: int) -> float:
    """Seconds a batch, from the end of the second on: workers have started then, and what was read ahead is gone."""
    try:
        for made in islice(stream, 2):
            _used(made)
        began = time.perf_counter()
        for made in stream:
            _used(made)
        return (time.perf_counter() - began) / (steps - 2)
    finally:
        getattr(stream, "close", lambda: None)()


def _used(batch: dict) -> None:
    """Touches a batch, as handing it to a device would."""
    assert len(batch["frames"]) and batch["frame_mask"] is not None


def _same(one: dict, other: dict) -> None:
    assert all(np.array_equal(one[name], other[name]) for name in one), "the plain loader reads something else"


class Plain:
    """A plain PyTorch data set: one example an item."""

    def __init__(self, examples: Curriculum, count: int):
        self.examples, self.count = examples, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return self.examples.example(index)


class PlainFilm(Film):
    """A film in the owners' form: an array of [T D] that is sliced and indexed, window by window."""

    def __init__(self, array: Any):
        header = SimpleNamespace(rate=RATE, arrays={"frame": ((WIDTH,), "float16")})
        super().__init__(SimpleNamespace(header=header, frames=len(array), path=Path("film"), regular=True, starts=np.zeros(1, int)))
        self.array = array

    def gather(self, index: np.ndarray, name: str, out: np.ndarray | None = None) -> np.ndarray:
        windows = index.reshape(-1, index.shape[-1])
        made = []
        for window in windows:
            first, last = int(window[0]), min(int(window[-1]), self.count - 1)
            made.append(self.array[first : last + 1][np.minimum(window, last) - first])
        stacked = made[0] if len(made) == 1 else np.stack(made)
        out = np.empty((*index.shape, WIDTH), np.float16) if out is None else out
        out[...] = stacked.reshape(out.shape)
        return out


class PlainCorpus(Corpus):
    """Films from one HDF5 file, or from a folder of .npy files that are mapped. Every process opens them anew."""

    def __init__(self, videos: Sequence[TrainVideo], place: Path):
        super().__init__(videos)
        self.place = place
        self._plain: dict[int, PlainFilm] = {}
        self._file: Any = None

    def film(self, number: int) -> Film:
        if number not in self._plain:
            name = self.videos[number].video_id
            if self.place.is_dir():
                self._plain[number] = PlainFilm(np.load(self.place / f"{name}.npy", mmap_mode="r"))
            else:
                import h5py

                self._file = self._file or h5py.File(self.place, "r")
                self._plain[number] = PlainFilm(self._file[name])
        return self._plain[number]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_plain": {}, "_file": None}


# ----------------------------------------------------------------------------------------------------------------------------- memory


def memory(folder: Path) -> dict[str, float | int]:
    """Resident memory while 20 GB are read, in MB: when a quarter, half, three quarters and all of it was."""
    films = round(GIGABYTES * 1e9 / (FILM_S * RATE * WIDTH * 2))
    free = shutil.disk_usage(folder.parent).free
    if free < 1.2e9 * GIGABYTES:
        from revision_jax.errors import UserError

        raise UserError(f"{folder.parent}: has {free / 1e9:.0f} GB left, a corpus of {GIGABYTES:g} GB is to be written; give another --workdir")
    figures: dict[str, float | int] = {}
    try:
        videos = write_corpus(folder, films, plain=False)
        config, tokenizer = setting()
        figures["corpus (GB)"] = sum(video.store.stat().st_size for video in videos) / 1e9
        for name, workers, steps in (("1a", 0, 400), ("2", 0, 152), ("2", 2, 152)):
            with Watch() as watch:
                before = watch.now()
                for step, made in enumerate(_ours(curriculum(config, tokenizer, name, Corpus(videos)), STAGES[name], STAGES[name] * steps, workers), 1):
                    _used(made)
                    if step % (steps // 4) == 0:
                        figures[f"{name}, {workers} workers: resident at {100 * step // steps} % (MB)"] = watch.now() / 1e6
            figures[f"{name}, {workers} workers: most (MB)"], figures[f"{name}, {workers} workers: before (MB)"] = watch.most / 1e6, before / 1e6
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


class Watch:
    """Resident bytes of this process and its children, asked for ten times a second."""

    def __enter__(self) -> Watch:
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self.now())

    def now(self) -> int:
        return sum(resident(pid) for pid in (os.getpid(), *children(os.getpid())))


def children(pid: int) -> list[int]:
    """All processes below one. Linux only."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*found, *(grandchild for child in found for grandchild in children(child))]


def resident(pid: int) -> int:
    """Resident bytes of a process, those that it shares with others in proportion (PSS); 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


# ----------------------------------------------------------------------------------------------------------------------------- corpus


def write_corpus(folder: Path, films: int, plain: bool) -> list[TrainVideo]:
    """Films of random features with as many questions as MAD's; what is there already stays. plain: also in the forms that a plain loader reads."""
    frames = round(FILM_S * RATE)
    videos = [TrainVideo(f"film-{number:04d}", FILM_S, store_path(folder, f"film-{number:04d}"), None, _questions(number)) for number in range(films)]
    missing = [video for video in videos if not video.store.is_file()]
    if not missing and (not plain or (folder / "features.h5").is_file()):
        return videos
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal((frames, WIDTH), np.float32).astype(np.float16)
    header = FeatureHeader("", "clip-vit-large-patch14", RATE, FILM_S, {"frame": ((WIDTH,), "float16")})
    for number, video in enumerate(videos):
        film = np.roll(noise, number, 0)
        with FeatureWriter(video.store, dataclasses.replace(header, video_hash=f"id:{video.video_id}")) as writer:
            for start in range(0, frames, 3000):
                writer.append(np.arange(start, min(start + 3000, frames)) / RATE, {"frame": film[start : start + 3000]})
        if plain:
            np.save(folder / f"{video.video_id}.npy", film)
    if plain:
        import h5py

        with h5py.File(folder / "features.part", "w") as file:
            for video in videos:
                file[video.video_id] = np.load(folder / f"{video.video_id}.npy")
        (folder / "features.part").rename(folder / "features.h5")
    return videos


def _questions(number: int) -> tuple:
    """QUERIES of them, of about four seconds each, as MAD's are."""
    from revision_jax.data.asking import TrainQuestion

    rng = np.random.default_rng([7, number])
    found = []
    for _ in range(QUERIES):
        start = float(rng.uniform(0, FILM_S - 20))
        length = float(np.clip(rng.exponential(4.0), 0.5, 19.0))
        found.append(TrainQuestion(" ".join(rng.choice(WORDS, rng.integers(5, 20)).tolist()), ((start, start + length),)))
    return tuple(found)
