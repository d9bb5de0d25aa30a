"""The feature cache: one process makes a store, others wait for it; what was used longest ago goes first."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore
from revision_jax.extraction import cache


def write(path: Path, frames: int = 10, pause_s: float = 0.0) -> FeatureStore:
    header = FeatureHeader(video_hash="v", encoder="e", rate=1.0, duration_s=float(frames), arrays={"frame": ((4,), "float16")})
    with FeatureWriter(path, header) as writer:
        time.sleep(pause_s)
        writer.append(np.arange(frames, dtype=float), {"frame": np.full((frames, 4), os.getpid() % 1000, np.float16)})
    return FeatureStore(path)


def opened(path: Path) -> FeatureStore | None:
    return FeatureStore(path) if path.is_file() else None


def _use(path: Path, results) -> None:
    store, made = cache.kept(path, lambda: opened(path), lambda: write(path, pause_s=0.5))
    results.put((made, store.read_frames(0, 10)[1]["frame"].tolist()))


def test_two_processes_at_once_make_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_use, args=(tmp_path / "film.features", results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(made for made, _ in found) == [False, True] and found[0][1] == found[1][1]
    assert [path.name for path in tmp_path.iterdir()] == ["film.features"]


def test_one_that_fails_leaves_the_next_to_make_it(tmp_path):
    path = tmp_path / "film.features"
    (tmp_path / ".film.features.123.partial").write_bytes(b"of a process that was killed")

    def fail() -> FeatureStore:
        with FeatureWriter(path, FeatureHeader("v", "e", 1.0, 1.0, {"frame": ((4,), "float16")})):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept(path, lambda: opened(path), fail)
    assert list(tmp_path.iterdir()) == []
    assert cache.kept(path, lambda: opened(path), lambda: write(path))[1] is True
    assert cache.kept(path, lambda: opened(path), fail)[1] is False


def test_the_limit_drops_what_was_used_longest_ago(tmp_path):
    paths = [tmp_path / f"{name}.features" for name in "abcd"]
    for age, path in enumerate(paths[:3]):
        write(path, 1000)
        os.utime(path, (10_000 - age, 10_000 - age))
    other = tmp_path / "notes.txt"
    other.write_bytes(bytes(10**6))
    size = paths[0].stat().st_size
    cache.kept(paths[2], lambda: opened(paths[2]), lambda: write(paths[2]))  # c was the oldest, and is the newest now
    held = opened(paths[1])
    cache.kept(paths[3], lambda: opened(paths[3]), lambda: write(paths[3], 1000), limit=3 * size + size // 2)
    assert [path.exists() for path in paths] == [True, False, True, True] and other.exists()
    assert held.read_frames(0, 1000)[1]["frame"].shape == (1000, 4)  # who reads it goes on reading


def test_the_one_just_made_stays_whatever_its_size(tmp_path):
    first, second = tmp_path / "a.features", tmp_path / "b.features"
    write(first, 1000)
    assert cache.kept(second, lambda: opened(second), lambda: write(second, 1000), limit=0)[1]
    assert not first.exists() and second.exists()
    assert cache.trim(tmp_path, 0, second) == [] and cache.trim(tmp_path, 0) == [second]
