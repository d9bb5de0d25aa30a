"""Files: byte for byte repeatable, true to the script, all or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from revision_jax.data.synthetic.questions import ask
from revision_jax.data.synthetic.render import render
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.write import write
from revision_jax.errors import UserError

SCRIPT = make_script(7, 60)


def test_two_runs_give_the_same_bytes(tmp_path):
    first, second = tmp_path / "a" / "deep", tmp_path / "b"
    for folder in (first, second):  # two runs as a person makes them: each a process of its own
        command = [sys.executable, "-m", "launch.synthesize", "--seed", "7", "--duration", "60", "--out", str(folder)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[3], capture_output=True, timeout=300)
    for name in ("video.mp4", "annotations.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert sorted(path.name for path in first.iterdir()) == ["annotations.json", "video.mp4"]


def test_the_video_is_what_was_drawn(tmp_path):
    path = write(SCRIPT, tmp_path) / "video.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        frames = list(container.decode(stream))
    assert len(frames) == SCRIPT.frames == 300
    assert np.allclose([frame.time for frame in frames], np.arange(300) / 5)
    keys = [number for number, frame in enumerate(frames) if frame.key_frame]
    assert keys == [0, 50, 100, 150, 200, 250]
    for decoded, drawn in list(zip(frames, render(SCRIPT), strict=True))[::23]:
        assert np.abs(decoded.to_ndarray(format="rgb24").astype(int) - drawn).mean() < 8


def test_annotations_have_the_fixed_schema(tmp_path):
    content = json.loads((write(SCRIPT, tmp_path) / "annotations.json").read_text())
    assert content["duration_s"] == 60.0 and len(content["queries"]) == 6
    for query in content["queries"]:
        assert set(query) == {"query_id", "query", "kind", "moments"} and query["kind"] in ("one", "several", "absent", "near_miss")
        assert bool(query["moments"]) == (query["kind"] in ("one", "several"))
        assert all(0 <= start < end <= 60 for start, end in query["moments"])
    assert content["tags"] == {question.query_id: question.tags for question in ask(SCRIPT)}


def test_tags_say_form_and_what_was_swapped():
    asked = ask(make_script(11, 3600.0), 200)
    assert {question.tags[0] for question in asked} == {"static", "motion", "change", "relation"} and all(q.tags[0] == q.query.form for q in asked)
    swapped = {question.tags[1] for question in asked if question.kind == "near_miss"}
    assert swapped == {f"{what} swapped" for what in ("size", "pattern", "colour", "shape", "motion", "new colour", "relation")}
    assert all(len(question.tags) == 1 for question in asked if question.kind != "near_miss")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_broken_run_leaves_nothing(tmp_path, error):
    def stop(done):
        if done == 40:
            raise error

    with pytest.raises((KeyboardInterrupt, UserError)):
        write(SCRIPT, tmp_path / "new" / "deep", progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "video.mp4").write_bytes(b"kept")
    with pytest.raises((KeyboardInterrupt, UserError)):
        write(SCRIPT, tmp_path / "old", progress=stop)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "old").iterdir()] == [("video.mp4", b"kept")]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write(SCRIPT, tmp_path / "file" / "inside")
    with pytest.raises(UserError, match="size"):
        write(SCRIPT, tmp_path / "out", size=99)
    assert not (tmp_path / "out").exists()


def test_two_films_may_make_the_folder_above_them_at_once(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def late(path, *given, **named):  # the other was a moment earlier
        os.makedirs(path, exist_ok=True)
        mkdir(path, *given, **named)

    monkeypatch.setattr(Path, "mkdir", late)
    write(make_script(3, 60), tmp_path / "split" / "000")
    assert sorted(path.name for path in (tmp_path / "split" / "000").iterdir()) == ["annotations.json", "video.mp4"]
