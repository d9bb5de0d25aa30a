"""`launch.bench encode` at toy size: the towers must say the same, which it checks itself, before any time counts."""

from __future__ import annotations

import argparse

import pytest

from launch.benches import encode as bench
from revision_jax.config import VisionConfig
from revision_jax.errors import UserError
from tests.grounding.test_grounder import write_video

SMALL = VisionConfig(width=16, layers=2, heads=2, mlp=24, patch=4, grids=((4, 8),), merge=2, pool="none")


@pytest.fixture
def small(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    film = write_video(tmp_path / "film.mp4", seconds=10)
    for name, value in {"TOWER": SMALL, "FRAMES": 12, "TOGETHER": 4, "rendered": lambda workdir, seconds: film}.items():
        monkeypatch.setattr(bench, name, value)
    peer_run = bench.peer_run
    monkeypatch.setattr(bench, "peer_run", lambda model, compiled: peer_run(model, False))  # compiling takes a minute
    return film


@pytest.mark.torch
@pytest.mark.slow
def test_every_way_is_measured(small):
    figures = bench.encode(argparse.Namespace(workdir=small.parent, films=[small]))
    share = figures["world: kept share at 1"]
    assert 0 < share < 1 and figures["film.mp4: kept share at 1"] == share and figures["world: kept share at 4"] <= share
    assert figures["world: share of the ideal"] == pytest.approx(share * figures["ours (s)"] / figures["pruned world (s)"])
    assert figures["not pruned: times as fast as PyTorch eager"] == pytest.approx(figures["PyTorch eager (s)"] / figures["ours (s)"])


@pytest.mark.torch
def test_another_tower_is_found_out(small, monkeypatch):
    frames = bench.pictures(small, 4)
    ours, pruned, peers = bench.towers()
    bench.agree(ours, pruned, peers, frames)
    with pytest.raises(UserError, match="not the same tower, PyTorch eager differs"):
        bench.agree(ours, pruned, {"PyTorch eager": lambda x: peers["PyTorch eager"](x[::-1])}, frames)
