"""`launch.bench data`: that both loaders make the same examples and are measured; and, by hand, that 20 GB do not grow the memory:
`python -m pytest -m huge tests/launch/test_bench_data.py -s`."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from launch.benches import data as bench_data

pytest.importorskip("torch")


@pytest.fixture
def small(monkeypatch):
    for name, value in (("FILMS", 2), ("FILM_S", 1800.0), ("QUERIES", 20), ("EXAMPLES", {"1a": 64, "1b": 64, "2": 6}), ("REPEATS", 1)):
        monkeypatch.setattr(bench_data, name, value)
    monkeypatch.setattr(bench_data, "STAGES", {"1a": 16, "1b": 16, "2": 2})


@pytest.mark.slow
def test_both_make_the_same_batches_and_are_measured(small, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "WORKERS", (0,))
    figures = bench_data.speed(tmp_path)
    assert all(value > 0 for value in figures.values())
    for name in bench_data.STAGES:
        assert {f"{name}, 0 workers: {what}" for what in ("examples a second", "MB a second")} <= set(figures)
        assert sum(figure.startswith(f"{name}, 0 workers: times as fast") for figure in figures) == 2


def test_the_plain_loader_reads_what_ours_reads(small, tmp_path):
    videos = bench_data.write_corpus(tmp_path, 2, plain=True)
    config, tokenizer = bench_data.setting()
    for name in bench_data.STAGES:
        ours = bench_data.curriculum(config, tokenizer, name, bench_data.Corpus(videos)).example(1)
        for place in (tmp_path, tmp_path / "features.h5"):
            other = bench_data.curriculum(config, tokenizer, name, bench_data.PlainCorpus(videos, place)).example(1)
            assert all(np.array_equal(ours[field], other[field]) for field in ours)
    assert ours["frames"].shape == (100, 250, 768) and ours["frames"].nbytes == 38_400_000  # 38 MB an example


def _hold(size: int) -> None:
    held = np.ones(size // 8)
    time.sleep(3)
    del held


def test_the_watch_counts_what_children_hold():
    before = bench_data.Watch().now()
    child = multiprocessing.get_context("spawn").Process(target=_hold, args=(200_000_000,))
    with bench_data.Watch() as watch:
        child.start()
        child.join()
    assert watch.most - before > 200_000_000


@pytest.mark.huge
def test_memory_is_flat_while_20_gb_are_read(tmp_path):
    figures = bench_data.memory(tmp_path / "corpus")
    print("\n" + "\n".join(f"{name} {value:.1f}" for name, value in figures.items()))
    assert figures["corpus (GB)"] > 19
    for run in {name.rsplit(":", 1)[0] for name in figures if name.endswith("most (MB)")}:
        assert figures[f"{run}: most (MB)"] < 1500
        assert figures[f"{run}: resident at 100 % (MB)"] < 1.1 * figures[f"{run}: resident at 25 % (MB)"]
