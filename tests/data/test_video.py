"""data/video.py on files made here: containers, codecs, timing, rotation, damage.

A frame shows its own number as bars, so that pictures and times can be held together.
"""

import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from revision_jax.data.video import choose_plan, clock, content_hash, probe, read_at, read_frames
from revision_jax.errors import UserError

HEIGHT, WIDTH = 64, 96
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def picture(number):
    """Eight columns, black or white: the number in binary, highest bit on the left; the lower quarter is red."""
    bits = np.array([number >> (7 - i) & 1 for i in range(8)], np.uint8) * 255
    frame = np.repeat(np.repeat(bits, WIDTH // 8)[None, :, None], 3, axis=2).repeat(HEIGHT, axis=0)
    frame[HEIGHT * 3 // 4 :] = (255, 0, 0)
    return frame


def number_of(frame):
    rows, cols = frame.shape[:2]
    columns = frame[rows // 4, [int((i + 0.5) * cols / 8) for i in range(8)]].mean(axis=-1) > 127
    return int(sum(int(bit) << (7 - i) for i, bit in enumerate(columns)))


def write(path, count=50, fps=10, codec="libx264", options=None, times_ms=None, container_options=None, gop=10, audio=False, fmt=None):
    """A video of `count` numbered frames; `times_ms` gives each its own timestamp."""
    with av.open(str(path), "w", format=fmt, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"preset": "veryfast", "sc_threshold": "0", **(options or {})} if codec == "libx264" else options or {}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=8000) if audio else None
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def read(path, rate, **options):
    reader = read_frames(path, rate, **options)
    chunks = list(reader)
    times = np.concatenate([c.times for c in chunks]) if chunks else np.zeros(0)
    return reader, times, [number_of(frame) for c in chunks for frame in c.frames]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "plain.mp4", 100)


CONTAINERS = [
    ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.webm", "libvpx-vp9"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.ts", "libx264"),
    ("a.mkv", "mjpeg"),
]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_containers_and_codecs(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    options = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"} if codec.startswith("libvpx") else None
    path = write(tmp_path / name, 45, codec=codec, options=options)
    info = probe(path)
    assert info.duration_s == pytest.approx(4.5, abs=0.15) and info.fps == pytest.approx(10, rel=0.05)
    assert (info.height, info.width, info.rotation) == (HEIGHT, WIDTH, 0)
    reader, times, numbers = read(path, 2.0)
    assert reader.warnings == []
    np.testing.assert_allclose(times, np.arange(9) / 2, atol=0.002)
    assert numbers == list(range(0, 45, 5))


@pytest.mark.parametrize("rate", [0.3, 1.0, 4.0, 10.0, 25.0])
def test_a_tick_gets_the_frame_at_or_before_it(plain, rate):
    reader, times, numbers = read(plain, rate)
    ticks = np.arange(int(np.ceil(10 * rate - 1e-9))) / rate
    expected = np.floor(ticks * 10 + 1e-6)
    assert reader.plan == ("seek" if rate <= 1 else "all")
    assert numbers == expected.astype(int).tolist()
    np.testing.assert_allclose(times, expected / 10, atol=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_any_seconds_get_the_frames_that_are_shown_then(tmp_path, name):
    path = write(tmp_path / name, 100)  # ten frames and one keyframe a second
    near, far = [0.0, 0.05, 0.1, 0.15, 0.29, 0.31], [0.25, 3.15, 3.25, 6.4501, 9.95]
    for seconds in (near, far, [9.95], [20.0]):  # the last lies behind the end
        found = list(read_at(path, seconds))
        shown = [int(second * 10 + 1e-6) for second in seconds if second < 10.5]
        assert [number_of(frame) for _, frame in found] == shown
        np.testing.assert_allclose([time for time, _ in found], np.asarray(shown) / 10, atol=0.002)
    assert next(iter(read_at(path, [1.0], size=(32, 48))))[1].shape == (32, 48, 3)
    assert list(read_at(path, [])) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_plans_agree_where_frames_are_all_needed_and_references_stay_true(tmp_path, name):
    path = write(tmp_path / name, 200, fps=25, gop=20, options={"bf": "3", "b-adapt": "0"})
    _, times, numbers = read(path, 1.0, plan="all")
    _, jumped_times, jumped = read(path, 1.0, plan="seek")
    assert numbers == jumped == list(range(0, 200, 25))
    np.testing.assert_array_equal(times, jumped_times)
    _, kept_times, kept = read(path, 1.0, plan="references")
    np.testing.assert_allclose(kept_times * 25, kept, atol=0.03)  # older perhaps, but each with its own time
    assert all(0 <= true - old <= 4 for true, old in zip(numbers, kept, strict=True))


def test_the_plan_follows_keyframes_and_rate(tmp_path):
    near = probe(write(tmp_path / "near.mp4", 100, fps=25, gop=25))
    far = probe(write(tmp_path / "far.mp4", 100, fps=25, gop=100))
    slow = probe(write(tmp_path / "slow.mp4", 50, fps=5, gop=50))
    assert near.keyframe_gap_s == pytest.approx(1.0) and far.keyframe_gap_s == float("inf")
    assert [choose_plan(near, rate) for rate in (0.5, 1.0, 4.0)] == ["seek", "seek", "all"]
    assert [choose_plan(far, rate) for rate in (0.5, 1.0, 4.0)] == ["references", "references", "all"]
    assert choose_plan(slow, 1.0) == "all"  # leaving frames out would leave ticks without a fresh one


@pytest.mark.parametrize("plan", ["seek", "all"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 3.0), (2.5, 7.25), (9.0, None), (6.95, 7.05), (0.0, 99.0)])
def test_a_range_is_a_slice_of_the_whole(plain, plan, start, end):
    _, times, numbers = read(plain, 4.0)
    inside = [i for i in range(40) if start <= i / 4 < (end or 10)]
    reader, some_times, some = read(plain, 4.0, start_s=start, end_s=end, plan=plan, chunk=7)
    assert some == [numbers[i] for i in inside] and reader.warnings == []
    np.testing.assert_array_equal(some_times, times[inside])


def test_a_range_between_ticks_is_empty_and_beyond_the_end_refused(plain):
    assert read(plain, 1.0, start_s=3.2, end_s=3.8)[2] == []
    with pytest.raises(UserError, match="nothing to read from 00:00:20"):
        read_frames(plain, 1.0, start_s=20.0)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
@pytest.mark.parametrize("plan", [None, "seek", "all"])
def test_variable_frame_rate(tmp_path, name, plan):
    rng = np.random.default_rng(5)
    stamps = np.cumsum([0, *rng.choice([20, 40, 300, 1500, 4000], 59)])
    path = write(tmp_path / name, 60, fps=25, times_ms=stamps, gop=7)
    reader, times, numbers = read(path, 2.0, plan=plan)
    ticks = np.arange(len(times)) * 500
    expected = np.searchsorted(stamps, ticks + 0.6, side="right") - 1
    assert numbers == expected.tolist() and reader.warnings == []
    np.testing.assert_allclose(times, stamps[expected] / 1000, atol=0.001)
    assert len(times) >= stamps[-1] // 500


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_a_late_start_is_subtracted(tmp_path, name):
    path = write(tmp_path / name, 40, times_ms=5000 + 100 * np.arange(40), fps=10)
    info = probe(path)
    assert info.duration_s == pytest.approx(4.0, abs=0.15)
    _, times, numbers = read(path, 2.0)
    assert numbers == list(range(0, 40, 5))
    np.testing.assert_allclose(times, np.arange(8) / 2, atol=0.002)


def rotate(path, out, degrees):
    """Writes the display matrix of a turn (counter-clockwise) into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    assert struct.unpack(">i", data[at : at + 4]) == (1 << 16,)
    data[at : at + 36] = matrix
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(plain, tmp_path, degrees):
    path = rotate(plain, tmp_path / "turned.mp4", degrees)
    info = probe(path)
    upright = (HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT)
    assert info.rotation == degrees and (info.height, info.width) == upright
    frames = next(iter(read_frames(path, 1.0))).frames
    assert frames.shape[1:3] == upright
    assert [number_of(np.rot90(frame, -degrees // 90)) for frame in frames] == list(range(0, 100, 10))
    small = next(iter(read_frames(path, 1.0, size=(40, 20)))).frames
    assert small.shape[1:3] == (40, 20)
    # The red quarter lies below before the turn; a quarter turn counter-clockwise puts it on the right.
    red = small[0, :, :, 0].astype(int) - small[0, :, :, 1]
    side = {90: red[:, -4:], 180: red[:8], 270: red[:, :4]}[degrees]
    assert (side > 128).all()


def test_pixels_are_made_square(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height) == (128, 64)
    assert next(iter(read_frames(path, 1.0))).frames.shape[1:3] == (64, 128)


def test_size_chunks_and_progress(plain):
    seen = []
    chunks = list(read_frames(plain, 4.0, start_s=2.0, size=(32, 48), chunk=15, progress=lambda done, total: seen.append((done, total))))
    assert [len(c) for c in chunks] == [15, 15, 2]
    assert all(c.frames.shape[1:] == (32, 48, 3) and c.frames.dtype == np.uint8 and c.times.dtype == np.float64 for c in chunks)
    assert [total for _, total in seen] == [8.0] * 3 and [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == 8.0


def test_a_reader_can_be_read_again_and_dropped_early(plain):
    reader = read_frames(plain, 1.0, chunk=4)
    first = next(iter(reader))
    assert len(first) == 4 and [len(c) for c in reader] == [4, 4, 2]


def test_memory_is_bounded_by_the_chunk(tmp_path):
    path = write(tmp_path / "long.mp4", 600, fps=10, gop=100)
    peaks = []
    for end in (10.0, 60.0):
        tracemalloc.start()
        assert sum(len(c) for c in read_frames(path, 10.0, end_s=end, chunk=16)) == end * 10
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def cut(path, out, share):
    data = path.read_bytes()
    out.write_bytes(data[: int(len(data) * share)])
    return out


# Transport streams and fragmented files state no length of their own: nothing tells that something is missing.
TRUNCATED = [
    ("front.mp4", {"movflags": "faststart"}, True),
    ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}, False), ("a.mkv", {}, True), ("a.ts", {}, False),
    ("a.avi", {}, True),
]


@pytest.mark.parametrize(("name", "options", "told"), TRUNCATED)
@pytest.mark.parametrize("plan", ["seek", "all", "references"])
def test_a_truncated_file_gives_what_can_be_read_and_says_up_to_where(tmp_path, name, options, told, plan):
    whole = write(tmp_path / name, 200, codec="mpeg4" if name.endswith("avi") else "libx264", container_options=options, gop=10)
    path = cut(whole, tmp_path / f"cut-{name}", 0.5)
    reader, times, numbers = read(path, 1.0, plan=plan)
    assert 5 <= len(times) <= 15
    np.testing.assert_allclose(np.array(numbers) / 10, times, atol=0.01)
    assert times[-1] <= reader.readable_s < 15
    assert reader.warnings == ([f"{path}: readable up to {clock(reader.readable_s)} of 00:00:20"] if told else [])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_damaged_middle_costs_only_the_middle(tmp_path, name):
    path = write(tmp_path / name, 200, gop=10)
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * 0.45), int(len(data) * 0.55)
    data[low:high] = np.random.default_rng(0).integers(0, 256, high - low, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    for plan in ("all", "seek"):
        reader, times, numbers = read(path, 2.0, plan=plan)
        assert len(times) == 40 and (np.diff(times) >= 0).all()
        assert numbers[:12] == list(range(0, 60, 5)) and numbers[-8:] == list(range(160, 200, 5))
        assert (times <= np.arange(40) / 2 + 0.002).all()
        assert not any("readable up to" in warning for warning in reader.warnings)


def test_not_a_video(tmp_path):
    cases = {"text.mp4": b"this is no video\n" * 200, "empty.mp4": b"", "noise.mkv": np.random.default_rng(0).bytes(5000), "notes.txt": b"words\n" * 500}
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        for call in (lambda p: probe(p), lambda p: read_frames(p, 1.0)):
            with pytest.raises(UserError, match=name) as caught:
                call(path)
            assert "\n" not in str(caught.value) and "not a video" in str(caught.value)


def test_missing_file_and_directory(tmp_path):
    for call in (probe, content_hash, lambda p: read_frames(p, 1.0)):
        with pytest.raises(UserError, match="no such file"):
            call(tmp_path / "none.mp4")
        with pytest.raises(UserError, match="is a directory"):
            call(tmp_path)


@pytest.mark.parametrize(("name", "codec"), [("sound.wav", "pcm_s16le"), ("sound.mp4", "aac")])
def test_audio_only(tmp_path, name, codec):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=8000)
        fmt = "s16" if codec == "pcm_s16le" else "fltp"
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16 if fmt == "s16" else np.float32), format=fmt, layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="audio only"):
        probe(tmp_path / name)


def test_zero_frames(tmp_path, plain):
    with av.open(str(tmp_path / "none.mp4"), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    data = bytearray(plain.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4 if data.index(b"moov") > start else len(data)
    data[start:end] = bytes(end - start)
    (tmp_path / "zeroed.mp4").write_bytes(data)
    for name in ("none.mp4", "zeroed.mp4"):
        with pytest.raises(UserError, match=name) as caught:
            list(read_frames(tmp_path / name, 1.0))
        assert "no frame" in str(caught.value) or "no video stream" in str(caught.value)


def test_one_frame(tmp_path):
    path = write(tmp_path / "one.mp4", 1)
    reader, times, numbers = read(path, 1.0)
    assert times.tolist() == [0.0] and numbers == [0] and reader.warnings == []


def test_sound_beside_the_picture_changes_nothing(tmp_path):
    path = write(tmp_path / "sound.mp4", 30, audio=True)
    assert read(path, 1.0)[2] == [0, 10, 20]


def test_content_hash_sees_size_head_middle_and_tail(tmp_path):
    data = bytearray(np.random.default_rng(0).bytes(5 << 20))
    hashes = set()
    for change in (None, 0, len(data) // 2, len(data) - 1, "longer"):
        other = bytearray(data)
        if change == "longer":
            other.append(0)
        elif change is not None:
            other[change] ^= 1
        (tmp_path / "file").write_bytes(other)
        hashes.add(content_hash(tmp_path / "file"))
    assert len(hashes) == 5 and all(len(h) == 32 for h in hashes)
    (tmp_path / "copy").write_bytes(data)
    (tmp_path / "file").write_bytes(data)
    assert content_hash(tmp_path / "copy") == content_hash(tmp_path / "file")


def test_clock():
    assert clock(3725.9) == "01:02:05" and clock(3725.1, up=True) == "01:02:06" and clock(-1) == "00:00:00"


@pytest.mark.parametrize(("name", "duration", "size"), [("bikes.mp4", 10.0, (272, 640)), ("bigbuckbunny.mp4", 5.28, (720, 1280))])
def test_real_clips(name, duration, size):
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the repository (../shared/data)")
    info = probe(path)
    assert info.duration_s == pytest.approx(duration, abs=0.05) and (info.height, info.width) == size and info.fps == pytest.approx(25)
    pictures = {}
    for plan in ("all", "seek"):
        reader = read_frames(path, 2.0, size=(90, 160), plan=plan)
        chunks = list(reader)
        times = np.concatenate([c.times for c in chunks])
        np.testing.assert_allclose(times, np.floor(np.arange(len(times)) * 12.5) / 25, atol=1e-4)
        pictures[plan] = np.concatenate([c.frames for c in chunks])
        assert reader.warnings == [] and len(times) == int(np.ceil(duration * 2))
    np.testing.assert_array_equal(pictures["all"], pictures["seek"])
