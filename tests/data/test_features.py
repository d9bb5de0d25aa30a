"""data/features.py: the feature store."""

import dataclasses
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revision_jax.data import feature_writer, record_layout, records
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, FeatureStore, differences, matches
from revision_jax.errors import UserError

HEADER = FeatureHeader("abc", "tiny-1", 1.0, 300.0, {"frame": ((8,), "float16"), "tokens": ((3, 8), np.float16), "change": ((3,), "float16")}, block_s=60.0)


def sample(count, rate=1.0, seed=0):
    rng = np.random.default_rng(seed)
    times = np.maximum(np.arange(count) / rate - rng.uniform(0, min(0.04, 0.9 / rate), count), 0)
    shapes = {name: shape for name, (shape, _) in HEADER.arrays.items()}
    return times, {name: rng.normal(size=(count, *shape)).astype(np.float16) for name, shape in shapes.items()}


def write(path, header, times, arrays, chunk=64):
    with FeatureWriter(path, header) as writer:
        for start in range(0, len(times), chunk):
            writer.append(times[start : start + chunk], {name: array[start : start + chunk] for name, array in arrays.items()})
    return FeatureStore(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    times, arrays = sample(301)
    return write(tmp_path_factory.mktemp("store") / "video.features", HEADER, times, arrays), times, arrays


def test_header_and_content_come_back(written):
    store, times, arrays = written
    assert store.header == HEADER and store.frames == len(store) == 301
    got_times, got = store.read()
    np.testing.assert_array_equal(got_times, times)
    assert got_times.dtype == np.float64 and set(got) == set(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == np.float16
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_array_equal(store.times(), times)


@given(st.floats(-10, 320), st.floats(-10, 320))
@settings(deadline=None)
def test_a_range_of_time_is_a_slice(written, start, end):
    store, times, arrays = written
    ticks = np.arange(301.0)
    inside = (ticks >= start - 1e-6) & (ticks < end - 1e-6)
    got_times, got = store.read(start, end, names=["frame"])
    np.testing.assert_array_equal(got_times, times[inside])
    np.testing.assert_array_equal(got["frame"], arrays["frame"][inside])
    assert list(got) == ["frame"]


@given(st.integers(-5, 310), st.integers(-5, 310))
@settings(deadline=None)
def test_a_range_of_frames_is_a_slice(written, first, stop):
    store, times, arrays = written
    got_times, got = store.read_frames(first, stop)
    expected = slice(max(first, 0), max(stop, 0))
    np.testing.assert_array_equal(got_times, times[expected])
    np.testing.assert_array_equal(got["tokens"], arrays["tokens"][expected])


@given(st.sampled_from([0.5, 1.0, 3.0, 4.0, 29.97]), st.sampled_from([1.0, 7.0, 60.0]), st.integers(0, 90), st.integers(1, 50))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rate_and_block_and_chunking(tmp_path, rate, block_s, count, chunk):
    header = dataclasses.replace(HEADER, rate=rate, block_s=block_s)
    times, arrays = sample(count, rate)
    store = write(tmp_path / "a", header, times, arrays, chunk)
    np.testing.assert_array_equal(store.read()[1]["tokens"], arrays["tokens"])
    third = count // 3
    np.testing.assert_array_equal(store.read(third / rate, 2 * third / rate)[0], times[third : 2 * third])


def asked_of(store, monkeypatch):
    """The records that are read from now on, as (block, array), and the bytes of each."""
    asked = []
    plain = record_layout.read

    def read(file, position, *buffers):
        record = int(np.searchsorted(store._places[0], position, "right")) - 1
        asked.append((*divmod(record, len(store._names)), sum(map(len, buffers))))
        plain(file, position, *buffers)

    monkeypatch.setattr(record_layout, "read", read)
    return asked


def test_only_the_needed_records_are_read(written, monkeypatch):
    """Two of the four arrays of the blocks that a window lies in: nothing else is asked of the file."""
    store = FeatureStore(written[0].path)
    asked = asked_of(store, monkeypatch)
    frame, times = (store._names.index(name) for name in ("frame", "times"))
    store.read(70, 110, names=["frame"])
    assert [record[:2] for record in asked] == [(1, frame), (1, times)]
    assert asked[0][2] - 60 * 8 * 2 < 200  # its numbers, and what the record says about itself
    asked.clear()
    store.read(80, 90, names=["frame"])  # the block is known to be right now: of its 60 frames the ten
    assert [record[:2] for record in asked] == [(1, frame), (1, times)] and [record[2] for record in asked] == [10 * 8 * 2, 10 * 8]
    asked.clear()
    store.read(110, 130)
    assert len(asked) == 2 * 4


def test_blocks_go_straight_into_the_array_that_they_are_wanted_in(written, monkeypatch):
    store, _, arrays = written
    filled = []
    plain = record_layout.read
    monkeypatch.setattr(record_layout, "read", lambda file, position, front, data: filled.append(data.ctypes.data) or plain(file, position, front, data))
    out = np.empty((190, 3, 8), np.float16)
    store.read_into("tokens", 50, out)
    np.testing.assert_array_equal(out, arrays["tokens"][50:240])
    inside = [address for address in filled if out.ctypes.data <= address < out.ctypes.data + out.nbytes]
    assert len(filled) == 4  # frames 50 to 60 come through a block of their own
    assert inside == [out[10 + 60 * block :].ctypes.data for block in range(3)]


def test_a_regular_store_knows_its_times(tmp_path):
    times, arrays = sample(200)
    assert not write(tmp_path / "late", HEADER, times, arrays).regular
    store = write(tmp_path / "regular", dataclasses.replace(HEADER, rate=3.0), np.arange(200) / 3.0, arrays)
    assert store.regular
    np.testing.assert_array_equal(store.times(), np.arange(200) / 3.0)
    np.testing.assert_array_equal(store.read_frames(70, 90)[0], np.arange(70, 90) / 3.0)


@pytest.mark.parametrize("what", ["no sums", "compressed", "no preadv"])
def test_what_cannot_be_read_straight_is_read_all_the_same(tmp_path, monkeypatch, what):
    times, arrays = sample(150)
    if what == "no sums":  # as stores were written before
        plain = records.pack
        cut = lambda magic, about, data=b"": plain(magic, {key: value for key, value in about.items() if key not in ("sum", "sums", "regular")}, data)
        monkeypatch.setattr(records, "pack", cut)
    if what == "compressed":  # records lie elsewhere then
        monkeypatch.setattr(feature_writer, "WRITER_OPTIONS", "group_size:1,zstd:3")
        arrays = {name: np.zeros_like(array) for name, array in arrays.items()}
    store = write(tmp_path / "a", HEADER, times, arrays)
    monkeypatch.undo()
    if what == "no preadv":
        monkeypatch.setattr(record_layout, "AVAILABLE", False)
    got_times, got = FeatureStore(store.path).read(30, 140)
    np.testing.assert_array_equal(got_times, times[30:140])
    np.testing.assert_array_equal(got["tokens"], arrays["tokens"][30:140])


def test_a_flipped_bit_is_told(written, tmp_path):
    store = written[0]
    place = int(store._places[0][store._names.index("frame")]) + 24 + 400  # inside of the first block's numbers
    data = bytearray(store.path.read_bytes())
    data[place] ^= 4
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged feature store \(block 0 of frame\)"):
        FeatureStore(tmp_path / "bad").read(0, 10, ["frame"])
    np.testing.assert_array_equal(FeatureStore(tmp_path / "bad").read(70, 80, ["frame"])[1]["frame"], written[2]["frame"][70:80])


def test_values_are_cast_and_infinity_stays(tmp_path):
    header = FeatureHeader("h", "e", 1.0, 2.0, {"change": ((2,), "float16")})
    store = write(tmp_path / "a", header, np.arange(2.0), {"change": np.array([[np.inf, np.inf], [0.1, 510.0]], np.float32)})
    np.testing.assert_array_equal(store.read()[1]["change"], np.array([[np.inf, np.inf], [0.1, 510.0]], np.float16))


def test_close_may_correct_duration_and_warnings(tmp_path):
    times, arrays = sample(10)
    writer = FeatureWriter(tmp_path / "a", HEADER)
    writer.append(times, arrays)
    writer.close(duration_s=9.5, warnings=["video.mp4: readable up to 00:00:10 of 00:05:00"])
    writer.close()  # a second close does nothing
    header = FeatureStore(tmp_path / "a").header
    assert header.duration_s == 9.5 and header.warnings == ("video.mp4: readable up to 00:00:10 of 00:05:00",)


def test_threads_and_pickled_copies_read_the_same(written):
    store, _, arrays = written

    def work(seed):
        starts = np.random.default_rng(seed).integers(0, 250, 50).tolist()
        return all(np.array_equal(store.read(start, start + 50)[1]["tokens"], arrays["tokens"][start : start + 50]) for start in starts)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read(50, 130)[1]["frame"], arrays["frame"][50:130])


def test_mismatch_is_refused_and_named(written):
    store = written[0]
    assert matches(store.header, "abc", "tiny-1", 1.0)
    store.require("abc", "tiny-1", 1.0)
    assert len(differences(store.header, "abd", "tiny-2", 2.0)) == 3
    with pytest.raises(UserError, match="encoder is 'tiny-1', not 'tiny-2'") as caught:
        store.require("abc", "tiny-2", 1.0)
    assert "video_hash" not in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_input_to_the_writer(tmp_path):
    times, arrays = sample(5)
    with pytest.raises(ValueError, match="arrays are"), FeatureWriter(tmp_path / "a", HEADER) as writer:
        writer.append(times, {"frame": arrays["frame"]})
    with pytest.raises(ValueError, match="frame has shape"), FeatureWriter(tmp_path / "a", HEADER) as writer:
        writer.append(times, {**arrays, "frame": arrays["tokens"]})
    with pytest.raises(ValueError, match="must not fall"), FeatureWriter(tmp_path / "a", HEADER) as writer:
        writer.append(times, arrays)
        writer.append(times, arrays)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="taken"):
        FeatureHeader("h", "e", 1.0, 1.0, {"times": ((), "float32")})


def test_an_interrupted_writer_leaves_nothing_and_keeps_the_old_store(tmp_path):
    times, arrays = sample(100)
    write(tmp_path / "a", HEADER, times, arrays)
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "a", HEADER) as writer:
        writer.append(times, arrays)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"]
    assert FeatureStore(tmp_path / "a").frames == 100


@pytest.mark.parametrize("keep", [0, 10, 1000, -1, -70000])
def test_truncated_stores_are_refused(written, tmp_path, keep):
    (tmp_path / "cut").write_bytes(written[0].path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cut: ") as caught:
        FeatureStore(tmp_path / "cut").read()
    assert "\n" not in str(caught.value)


def test_a_damaged_block_is_told(written, tmp_path):
    data = bytearray(written[0].path.read_bytes())
    data[5000:5050] = b"\0" * 50
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        FeatureStore(tmp_path / "bad").read()


def test_foreign_and_missing_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such feature store"):
        FeatureStore(tmp_path / "none")
    with pytest.raises(UserError, match="no such feature store"):
        FeatureStore(tmp_path)
    (tmp_path / "text").write_text("hello " * 100)
    with pytest.raises(UserError, match="not a complete feature store"):
        FeatureStore(tmp_path / "text")
    foreign = feature_writer.ArrayRecordWriter(str(tmp_path / "foreign"), "group_size:1")
    foreign.write(b"something else")
    foreign.close()
    with pytest.raises(UserError, match="not a feature store"):
        FeatureStore(tmp_path / "foreign")
    monkeypatch.setattr(feature_writer, "VERSION", 2)
    write_newer = FeatureWriter(tmp_path / "newer", HEADER)
    write_newer.close()
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 2, this program reads version 1"):
        FeatureStore(tmp_path / "newer")


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        FeatureWriter(tmp_path / "file" / "a", HEADER)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    # A file-size limit makes writes fail in the middle, as a full disk does; in a process of its own, because a limit cannot be lifted again.
    code = """
        import resource, signal, sys
        import numpy as np
        from revision_jax.data.feature_writer import FeatureWriter
        from revision_jax.data.features import FeatureHeader
        from revision_jax.errors import UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            with FeatureWriter(sys.argv[1], FeatureHeader("h", "e", 1.0, 1.0, {"frame": ((1000,), "float16")}, block_s=5.0)) as writer:
                for start in range(0, 1000, 50):
                    writer.append(np.arange(start, start + 50.0), {"frame": np.random.default_rng(0).normal(size=(50, 1000))})
        except UserError as error:
            print(error)
            sys.exit(2)
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stdout and "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_a_model_or_an_annotation_is_told(written):
    store = written[0]
    assert store.covered_s == 301.0
    store.require(None, "tiny-1", 1.0, width=8, duration_s=302.5)
    with pytest.raises(UserError, match="vectors have width 8, not 768; it covers 301 s of 400 s"):
        store.require(None, "tiny-1", 1.0, width=768, duration_s=400.0)


def test_what_is_not_a_number_is_refused(tmp_path):
    times, arrays = sample(100)
    arrays["tokens"][70, 1, 3] = np.nan
    with pytest.raises(UserError, match=r"tokens of frame 70 \(70 s\) is not a number"):
        write(tmp_path / "a", HEADER, times, arrays)
    assert os.listdir(tmp_path) == []
