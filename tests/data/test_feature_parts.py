"""data/feature_parts.py: what a killed writer leaves, and that the end is the same."""

import dataclasses
import os

import numpy as np
import pytest

from revision_jax.data.feature_parts import DAMAGED, ResumableWriter, parts_folder
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore
from revision_jax.errors import UserError

HEADER = FeatureHeader("abc", "tiny-1", 2.0, 60.0, {"frame": ((8,), "float16"), "change": ((3,), "float16")}, block_s=7.0)
FRAMES = 100


@pytest.fixture
def content():
    rng = np.random.default_rng(0)
    return np.arange(FRAMES) / 2.0, {"frame": rng.normal(size=(FRAMES, 8)).astype(np.float16), "change": rng.normal(size=(FRAMES, 3)).astype(np.float16)}


def feed(writer, content, stop, chunk=5):
    times, arrays = content
    for start in range(writer.frames, stop, chunk):
        end = min(start + chunk, stop)
        writer.append(times[start:end], {name: array[start:end] for name, array in arrays.items()})


def reference(path, content, warnings=()):
    with FeatureWriter(path, HEADER) as writer:
        feed(writer, content, FRAMES)
        writer.close(warnings=warnings)
    return path.read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stops", [[], [0], [3], [15, 15, 21], [40, 41, 99], [100], [30, 60, 90]])
def test_killed_anywhere_the_bytes_are_the_same(tmp_path, content, stops):
    for stop in stops:
        with pytest.raises(RuntimeError), ResumableWriter(tmp_path / "a", HEADER, part_frames=15) as writer:
            feed(writer, content, stop)
            raise RuntimeError("killed")
        assert not (tmp_path / "a").exists()
    with ResumableWriter(tmp_path / "a", HEADER, part_frames=15) as writer:
        assert writer.frames == max(0, (max([0, *stops]) - 1) // 15 * 15)  # all but the part that was being written
        feed(writer, content, FRAMES)
        writer.close(warnings=["readable up to here"])
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == reference(tmp_path / "b", content, ["readable up to here"])


def test_a_writer_that_vanishes_without_a_word(tmp_path, content):
    """As after SIGKILL: nobody closes anything, half files stay."""
    writer = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    feed(writer, content, 90)
    (tmp_path / ".a.123.partial").write_bytes(b"half")
    assert names(parts_folder(tmp_path / "a"))[1:] == ["000000", "000001", "000002", "000003"]
    with ResumableWriter(tmp_path / "a", HEADER, part_frames=20) as again:
        assert again.frames == 80 and not again.complete
        assert names(parts_folder(tmp_path / "a")) == ["000000", "000001", "000002", "000003"] and names(tmp_path) == [".a.parts"]
        feed(again, content, FRAMES)
        again.close()
    assert (tmp_path / "a").read_bytes() == reference(tmp_path / "b", content)


def test_killed_while_joining(tmp_path, content, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    writer = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    feed(writer, content, FRAMES)
    monkeypatch.setattr(ResumableWriter, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.close(warnings=["cut off"])
    monkeypatch.undo()
    assert names(tmp_path) == [".a.parts"] and names(tmp_path / ".a.parts")[-1] == "000004.last"
    with ResumableWriter(tmp_path / "a", HEADER, part_frames=20) as again:
        assert again.complete and again.frames == FRAMES
        again.close()
    assert (tmp_path / "a").read_bytes() == reference(tmp_path / "b", content, ["cut off"]) and FeatureStore(tmp_path / "a").header.warnings == ("cut off",)


@pytest.mark.parametrize("change", [{"encoder": "tiny-2"}, {"video_hash": "abd"}, {"rate": 1.0}, {"arrays": {"frame": ((8,), "float32")}}, {"block_s": 5.0}])
def test_parts_of_something_else_are_thrown_away(tmp_path, content, change):
    feed(ResumableWriter(tmp_path / "a", HEADER, part_frames=20), content, 90)
    other = ResumableWriter(tmp_path / "a", dataclasses.replace(HEADER, **change), part_frames=20)
    assert other.frames == 0 and names(tmp_path / ".a.parts") == []


def test_a_broken_part_is_made_again_with_all_behind_it(tmp_path, content):
    feed(ResumableWriter(tmp_path / "a", HEADER, part_frames=20), content, 90)
    part = tmp_path / ".a.parts" / "000002"
    part.write_bytes(part.read_bytes()[:-70_000])
    assert ResumableWriter(tmp_path / "a", HEADER, part_frames=20).frames == 40


def test_a_part_whose_bytes_rot_is_told_and_removed(tmp_path, content):
    writer = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    feed(writer, content, FRAMES)
    part = tmp_path / ".a.parts" / "000001"
    data = bytearray(part.read_bytes())
    data[200:260] = bytes(60)
    part.write_bytes(data)
    with pytest.raises(UserError, match="other bytes than were written"):
        writer.close()
    assert not part.exists() and not (tmp_path / "a").exists()
    again = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    assert again.frames == 20
    feed(again, content, FRAMES)
    again.close()
    assert (tmp_path / "a").read_bytes() == reference(tmp_path / "b", content)


def test_damage_is_remembered(tmp_path, content):
    writer = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    feed(writer, content, 30)
    assert not ResumableWriter(tmp_path / "b", HEADER).damaged
    writer.damaged = True
    feed(writer, content, 70)
    again = ResumableWriter(tmp_path / "a", HEADER, part_frames=20)
    assert again.frames == 60 and again.damaged
    feed(again, content, FRAMES)
    again.close(warnings=["damaged; 3 packets"])
    assert DAMAGED not in FeatureStore(tmp_path / "a").header.warnings


def test_an_empty_video(tmp_path):
    with ResumableWriter(tmp_path / "a", HEADER) as writer:
        writer.close(warnings=["nothing"])
    assert FeatureStore(tmp_path / "a").frames == 0 and os.listdir(tmp_path) == ["a"]
