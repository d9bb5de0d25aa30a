"""The ways that `launch.bench video` compares read the same pictures."""

from __future__ import annotations

from launch.benches import video as bench
from revision_jax.data.video import probe


def test_every_way_takes_a_frame_a_second(tmp_path, monkeypatch):
    for name, value in {"WIDTH": 160, "HEIGHT": 90, "FPS": 5}.items():
        monkeypatch.setattr(bench, name, value)
    path = bench.film(tmp_path, 2)
    info = probe(path)
    assert (info.width, info.height, round(info.duration_s)) == (160, 90, 120) and 9 <= info.keyframe_gap_s <= 11
    assert bench.ours(path) == bench.naive(path) == bench.lean(path) == 120
    assert abs(bench.filtered(path) - 120) <= 1
