"""Videos to stores: killed and gone on with, shared out, raced for, and with broken files among them."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from launch import cli, extract
from revision_jax import checkpoint
from revision_jax.claims import claim
from revision_jax.data.feature_parts import PART_FRAMES, parts_folder
from revision_jax.data.features import FeatureStore
from revision_jax.data.synthetic.script import make_script
from revision_jax.data.synthetic.write import write_mp4
from revision_jax.errors import UserError
from revision_jax.extraction import jobs as extraction_jobs
from revision_jax.extraction import video as extraction
from tests.grounding.conftest import noisy_state
from tests.tiny import config as tiny_config

ROOT = Path(__file__).parents[2]
RATE = 11  # frames a second of a minute: two parts and a bit
FRAMES = 60 * RATE
CHUNKS = -(-FRAMES // extraction.CHUNK)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "words.json").write_text("{}")
    config = tiny_config()
    return checkpoint.export(noisy_state(config), config, folder / "words.json", folder / "tiny")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """a.mp4 and deep/b.mp4, a minute each."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "deep").mkdir()
    for name, seed in (("a.mp4", 1), ("deep/b.mp4", 2)):
        write_mp4(make_script(seed, 60), folder / name, 160)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def whole(model, films, tmp_path_factory):
    """Both films' stores, made without interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert call(films, model, out) == 0
    return out


def call(videos, model, out, *more):
    videos = videos if isinstance(videos, list) else [videos]
    return extract.main([str(x) for x in (*videos, "--checkpoint", model, "--out", out, "--rate", RATE, *more)])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def encoded(monkeypatch):
    """The number of frames of each call of the encoder."""
    calls, plain = [], extraction.encode_chunk
    monkeypatch.setattr(extraction, "encode_chunk", lambda config, params, images, *more: calls.append(len(images)) or plain(config, params, images, *more))
    return calls


def test_folders_and_files(whole, model, films, tmp_path, encoded, capsys):
    assert files(whole) == ["a.features", "deep/b.features"]
    store = FeatureStore(whole / "a.features")
    assert store.frames == FRAMES and store.header.rate == RATE and store.header.fps == 5
    config, params = extraction_jobs.load_encoder(model)
    with_all = checkpoint.load(model, dtype="float32").state["params"]
    assert store.header.encoder == extraction.encoder_identity(config, with_all)  # as the Grounder asks for it
    direct = extraction.extract(films / "a.mp4", config, params, tmp_path / "direct", rate=RATE)
    assert direct.path.read_bytes() == (whole / "a.features").read_bytes()
    encoded.clear()
    assert call(films, model, whole) == 0 and not encoded
    assert "0 videos encoded (0 frames), 2 were there, 0 failed" in capsys.readouterr().out


def test_patches(model, films, tmp_path):
    assert call(films / "a.mp4", model, tmp_path, "--patches") == 0
    assert files(tmp_path) == ["a.features", "a.patches"]
    level = extraction_jobs.load_encoder(model)[0].grounding.levels[2]
    assert FeatureStore(tmp_path / "a.patches").header.rate == level.rate == 4.0


KILLED = """
    import os, signal, sys
    from launch import extract
    from revision_jax.extraction import video as extraction
    calls, plain = [], extraction.encode_chunk
    def encode(*given):
        calls.append(1)
        if len(calls) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*given)
    extraction.encode_chunk = encode
    extract.main(sys.argv[2:])
"""


def killed(at, videos, model, out):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(at), str(videos), "--checkpoint", str(model), "--out", str(out), "--rate", str(RATE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_twice_and_gone_on_with(model, films, whole, tmp_path, encoded, capsys):
    """The first process dies in the first film's second part, the second in the second film: nothing finished is encoded again, the bytes are the same."""
    per_part = PART_FRAMES // extraction.CHUNK
    killed(per_part + 3, films, model, tmp_path)  # one part is finished
    assert sorted(files(parts_folder(tmp_path / "a.features")))[-1] == "000000" and not (tmp_path / "a.features").exists()
    killed(CHUNKS - per_part + 2, films, model, tmp_path)  # the rest of the first film, and one chunk of the second
    assert (tmp_path / "a.features").read_bytes() == (whole / "a.features").read_bytes()
    stamp = os.stat(tmp_path / "a.features").st_mtime_ns
    assert call(films, model, tmp_path) == 0
    assert sum(encoded) == FRAMES  # of the second film alone, of which no part was finished
    assert "1 videos encoded" in capsys.readouterr().out and os.stat(tmp_path / "a.features").st_mtime_ns == stamp
    assert files(tmp_path) == files(whole)
    for name in files(whole):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_stopped_behind_damage(model, films, tmp_path, monkeypatch):
    """Behind damage a decoder's pictures depend on where it began, so the file is read from its beginning again: the same features and warnings result."""
    data = bytearray((films / "a.mp4").read_bytes())
    place = len(data) // 4
    data[place : place + 5000] = np.random.default_rng(0).bytes(5000)
    (tmp_path / "bad.mp4").write_bytes(data)
    assert call(tmp_path / "bad.mp4", model, tmp_path / "whole") == 0
    store = FeatureStore(tmp_path / "whole" / "bad.features")
    assert "damaged" in store.header.warnings[0]
    calls, plain = [], extraction.encode_chunk

    def stopping(config, params, images, *more):
        calls.append(len(images))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return plain(config, params, images, *more)

    monkeypatch.setattr(extraction, "encode_chunk", stopping)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "bad.mp4", model, tmp_path / "out")
    assert call(tmp_path / "bad.mp4", model, tmp_path / "out") == 0
    assert sum(calls[7:]) == store.frames - PART_FRAMES
    assert (tmp_path / "out" / "bad.features").read_bytes() == store.path.read_bytes()


def test_shards_share_everything_once(model, films, whole, tmp_path, capsys):
    for share in ("0/2", "1/2"):
        assert call(films, model, tmp_path, "--shard", share) == 0
        assert "1 videos encoded" in capsys.readouterr().out
    assert files(tmp_path) == files(whole)
    jobs = extraction_jobs.find_jobs([films])
    assert [job.video_id for job in jobs] == ["a", "deep/b"]
    for count in (1, 2, 3):
        shares = [extraction_jobs.shard(jobs, i, count) for i in range(count)]
        assert sorted((job for share in shares for job in share), key=lambda job: job.video_id) == jobs


def test_two_processes_never_work_on_one_video(model, films, whole, tmp_path, encoded, capsys):
    with claim(tmp_path / "a.features") as mine:
        assert mine
        assert call(films, model, tmp_path) == 0
    assert "1 videos encoded" in capsys.readouterr().out and sum(encoded) == FRAMES and files(tmp_path) == ["deep/b.features"]
    assert call(films, model, tmp_path) == 0  # the other one has gone, its claim with it
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_a_race(model, films, whole, tmp_path):
    command = [sys.executable, "-m", "launch.extract", str(films), "--checkpoint", str(model), "--out", str(tmp_path), "--rate", str(RATE)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert files(tmp_path) == files(whole)
    assert sum(int(out.splitlines()[-1].split()[0]) for out, _ in said) == 2  # each film was encoded by one of them
    for name in files(whole):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_broken_files_among_good_ones(model, films, whole, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(films, videos)
    (videos / "audio.mp4").write_bytes(b"")
    (videos / "text.avi").write_text("this is no video\n" * 100)
    (videos / "cut.mp4").write_bytes((films / "a.mp4").read_bytes()[:3000])
    assert call(videos, model, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "2 videos encoded (1320 frames), 0 were there, 3 failed" in said.out
    told = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert len(told) == 3 and all(name in line for name, line in zip(("audio.mp4", "cut.mp4", "text.avi"), told, strict=True)) and "Traceback" not in said.err
    assert files(tmp_path / "out") == files(whole)


def test_what_another_encoder_made_is_not_replaced(model, films, whole, tmp_path, capsys):
    config = tiny_config()
    other = checkpoint.export(noisy_state(config, seed=1), config, model / "tokenizer.json", tmp_path / "other")
    shutil.copytree(whole, tmp_path / "out")
    assert call(films, other, tmp_path / "out") == 1
    assert "its encoder is" in capsys.readouterr().err and (tmp_path / "out" / "a.features").read_bytes() == (whole / "a.features").read_bytes()
    (tmp_path / "out" / "a.features").write_bytes(b"broken")
    assert call(films, model, tmp_path / "out") == 0  # a broken store is made again
    assert (tmp_path / "out" / "a.features").read_bytes() == (whole / "a.features").read_bytes()


def test_another_file_of_the_same_name_replaces_the_store(model, films, whole, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(films / "deep" / "b.mp4", tmp_path / "videos" / "a.mp4")
    shutil.copytree(whole, tmp_path / "out")
    assert call(tmp_path / "videos", model, tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.features").read_bytes() == (whole / "deep" / "b.features").read_bytes()


def test_bad_arguments(model, films, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    shutil.copy(films / "a.mp4", tmp_path / "a.avi")
    for arguments, message in (
        ([], "VIDEO"),
        ([films], "--checkpoint"),
        ([films, "--checkpoint", model, "--out", tmp_path / "out", "--shard", "2/2"], "shard 2/2: the number must lie in 0..1"),
        ([films, "--checkpoint", model, "--out", tmp_path / "out", "--shard", "half"], "--shard: 'half' is not I/N"),
        ([films, "--checkpoint", model, "--out", tmp_path / "out", "--shard", "0/0"], "shard 0/0"),
        ([films, "--checkpoint", model, "--out", tmp_path / "out", "--rate", "0"], "--rate: must be above 0"),
        ([films, "--checkpoint", model, "--out", tmp_path / "out", "--rate", "nan"], "--rate: must be above 0"),
        ([films, "--checkpoint", tmp_path / "none", "--out", tmp_path / "out"], "none: no such checkpoint folder"),
        ([tmp_path / "no.mp4", tmp_path / "empty", "--checkpoint", model, "--out", tmp_path / "out"], "no.mp4: no such file or folder; "),
        ([tmp_path / "a.avi", films / "a.mp4", "--checkpoint", model, "--out", tmp_path / "out"], "would both be 'a'"),
        ([films, "--checkpoint", model, "--out", tmp_path / "file"], "file/a.features: cannot be claimed"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda arguments=arguments: extract.main([str(a) for a in arguments]))
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and message in said, said
        assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_fit_its_config(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    values["vision"]["mlp"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tensors do not match config.json: .*mlp"):
        extraction_jobs.load_encoder(tmp_path / "model")


def test_a_full_disk_stops_the_run(model, films, tmp_path, monkeypatch):
    """Every other video would fail, too: that is an error of the run, and what was finished stays."""
    from revision_jax.data.feature_writer import FeatureWriter
    from revision_jax.data.features import StoreError

    plain = FeatureWriter._flush

    def full(self):
        if self.path.name == "000001":
            self._fail(OSError(28, "No space left on device"))
        plain(self)

    monkeypatch.setattr(FeatureWriter, "_flush", full)
    with pytest.raises(StoreError, match=r"cannot be written .No space left"):
        call(films, model, tmp_path)
    assert files(tmp_path) == [".a.features.parts/000000"]


def test_progress_on_a_terminal(model, films, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setenv("TERM", "xterm")
    assert call(films, model, tmp_path) == 0
    assert "100%" in seen.getvalue() and "deep/b" in seen.getvalue()
