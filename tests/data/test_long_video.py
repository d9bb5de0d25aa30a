"""Several processes decode what one does, bit for bit; damage, errors and a killed caller leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from revision_jax.data import long_video, video
from revision_jax.errors import UserError
from tests.data.test_video import cut, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp("films") / "film.mp4", 200, fps=10, gop=10)  # 20 s, a keyframe every second


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch):
    monkeypatch.setattr(long_video, "LONG_S", 1.0)
    monkeypatch.setattr(long_video, "GAPS", 1)


def chunks(reader) -> list[tuple[list[float], bytes]]:
    return [(part.times.tolist(), part.frames.tobytes()) for part in reader]


def same(path: Path, rate: float, **options) -> long_video.SegmentReader:
    """Asserts that several processes give what one gives; returns the reader of several."""
    many, one = long_video.read_frames(path, rate, decoders=3, **options), video.read_frames(path, rate, **options)
    assert many.decoders == 3 and len(many.segments()) > 3
    assert chunks(many) == chunks(one) and many.plan == one.plan
    assert (many.warnings, many.readable_s, many.failures) == (one.warnings, one.readable_s, one.failures)
    return many


@pytest.mark.parametrize(("rate", "chunk"), [(2.0, 4), (3.0, 7), (0.5, 1)])  # 0.5: from keyframe to keyframe; 3: ticks between frames
def test_the_same_frames_as_one_process(film, rate, chunk):
    same(film, rate, chunk=chunk, size=(32, 48))


def test_a_part_of_it_with_frames_left_out(tmp_path):
    path = write(tmp_path / "b.mp4", 300, fps=30, gop=30, options={"bf": "3"})
    reader = same(path, 1.5, chunk=2, size=(16, 24), start_s=1.3, end_s=9.1)
    assert reader.plan == "references" and reader.segments()[0][0] == 2 / 1.5 and reader.segments()[-1][1] == 9.1


def test_progress_rises_to_the_end(film):
    told = []
    list(long_video.read_frames(film, 2.0, decoders=2, chunk=4, progress=lambda done, of: told.append((done, of))))
    assert told == sorted(told) and told[-1] == (pytest.approx(20.0), pytest.approx(20.0)) and len(told) == 10


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_damage_is_met_as_one_process_meets_it(film, tmp_path, share):
    data = bytearray(film.read_bytes())
    low, high = int(len(data) * share), int(len(data) * (share + 0.1))
    data[low:high] = np.random.default_rng(0).integers(0, 256, high - low, dtype=np.uint8).tobytes()
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    same(path, 2.0, chunk=4)


def test_a_file_that_is_cut(tmp_path):
    whole = write(tmp_path / "front.mp4", 200, gop=10, container_options={"movflags": "faststart"})
    reader = same(cut(whole, tmp_path / "cut.mp4", 0.5), 2.0, chunk=2)
    assert "readable up to" in reader.warnings[0]


def test_what_one_process_reads(film, tmp_path):
    alone = write(tmp_path / "one.mp4", 100, gop=1000)  # one keyframe: nowhere to cut
    assert long_video.read_frames(alone, 2.0, decoders=3).decoders == 1
    assert long_video.read_frames(film, 2.0, decoders=3, end_s=0.5).decoders == 1  # short
    with pytest.raises(UserError, match="decoders: must be at least 1, is 0"):
        long_video.read_frames(film, 2.0, decoders=0)


@pytest.mark.parametrize(("cores", "wanted"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8), (96, 8), (None, 1)])
def test_decoders_by_cores(monkeypatch, cores, wanted):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert long_video.default_decoders() == wanted


def children(pid: int | str = "self") -> set[int]:
    """Processes that `pid` has started and that live."""
    pid = os.getpid() if pid == "self" else int(pid)
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, state, parent = int(status.parent.name), *status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.add(number)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_process_is_left_by_an_error_or_an_early_end(film):
    before = children()
    reading = iter(long_video.read_frames(film, 2.0, decoders=3, chunk=4))
    next(reading)
    assert len(children() - before) == 3
    reading.close()
    assert children() == before

    def broken(done, of):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        list(long_video.read_frames(film, 2.0, decoders=3, chunk=4, progress=broken))
    assert children() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_process_that_dies_is_made_up_for(film):
    reader = long_video.read_frames(film, 2.0, decoders=2, chunk=4)
    before, reading, found = children(), iter(reader), []
    for part in reading:
        if not found:
            for child in children() - before:
                os.kill(child, signal.SIGKILL)
        found.append((part.times.tolist(), part.frames.tobytes()))
    assert found == chunks(video.read_frames(film, 2.0, chunk=4)) and reader.warnings == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_process_outlives_a_caller_that_is_terminated(film):
    code = (
        "import sys, time; from revision_jax.data import long_video; long_video.LONG_S, long_video.GAPS = 1.0, 1\n"
        "reading = iter(long_video.read_frames(sys.argv[1], 2.0, decoders=3, chunk=4)); next(reading); print('reading', flush=True); time.sleep(600)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(film)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert caller.stdout.readline() == "reading\n"
    started = children(caller.pid)
    assert len(started) == 3
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(timeout=60) == -signal.SIGTERM
    until = time.monotonic() + 60
    alive = started
    while alive and time.monotonic() < until:
        alive = {pid for pid in alive if Path(f"/proc/{pid}/cmdline").exists() and b"long_video" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        time.sleep(0.05)
    assert not alive
