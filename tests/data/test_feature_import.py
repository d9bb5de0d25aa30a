"""data/feature_import.py and data/feature_sources.py: what owners distribute becomes stores, and what does not fit is told."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from revision_jax.data.feature_import import CLIP_L14, import_queries, import_videos
from revision_jax.data.feature_sources import FolderSource, Hdf5Source, LmdbSource
from revision_jax.data.features import FeatureStore
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.errors import UserError

D = 12
MAD = {"encoder": CLIP_L14, "rate": 5.0, "width": D}


def features(frames, seed=0, width=D, dtype=np.float16):
    return np.random.default_rng(seed).normal(size=(frames, width)).astype(dtype)


def npz(**arrays):
    data = io.BytesIO()
    np.savez_compressed(data, **arrays, allow_pickle=True)  # as the owners call it: writes an array by that name
    return data.getvalue()


@pytest.fixture
def films():
    return {"0001_Film": features(5 * 61), "0002_Film": features(5 * 130 + 3, 1)}


@pytest.fixture
def mad(tmp_path, films):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name, array in films.items():
            file.create_dataset(name, data=array, chunks=(64, D))
    return tmp_path / "features.h5"


def lmdb_of(path, values):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return path


def check(folder, films, rate=5.0):
    for name, array in films.items():
        store = FeatureStore(folder / f"{name}.features")
        store.require(f"id:{name}", CLIP_L14, rate, width=D)
        times, read = store.read()
        np.testing.assert_array_equal(read["frame"], array)
        np.testing.assert_array_equal(times, np.arange(len(array)) / rate)


def test_mad(mad, films, tmp_path):
    seen = []
    result = import_videos(
        Hdf5Source(mad), tmp_path / "out", **MAD, durations={"0001_Film": 62.0, "0002_Film": 129.0}, progress=lambda *told: seen.append(told)
    )
    assert str(result) == "2 written, 0 kept" and seen == [("0001_Film", 0, 2), ("0002_Film", 1, 2)]
    check(tmp_path / "out", films)
    assert FeatureStore(tmp_path / "out" / "0001_Film.features").header.duration_s == 62.0
    # A second call writes nothing; another encoder's features, and broken ones, are written again.
    assert str(import_videos(Hdf5Source(mad), tmp_path / "out", **MAD)) == "0 written, 2 kept"
    (tmp_path / "out" / "0002_Film.features").write_bytes(b"cut")
    assert str(import_videos(Hdf5Source(mad), tmp_path / "out", **MAD)) == "1 written, 1 kept"
    assert str(import_videos(Hdf5Source(mad), tmp_path / "out", **{**MAD, "encoder": "other"})) == "2 written, 0 kept"


def test_hdf5_with_a_group_a_video(tmp_path, films):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for name, array in films.items():
            file.create_group(name).create_dataset("clip", data=array.astype(np.float32), compression="gzip")
        file["0001_Film"].create_dataset("fps", data=5)
    source = Hdf5Source(tmp_path / "groups.h5")
    with pytest.raises(UserError, match=r"'0001_Film' has the arrays 'clip', 'fps'; say which one is wanted"):
        import_videos(source, tmp_path / "out", **MAD)
    import_videos(source, tmp_path / "out", **MAD, array="clip")
    check(tmp_path / "out", films)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_for_each_video(tmp_path, films, order):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    films = {"a": features(130, 3), "deep/b": features(5000, 4)}  # more than one piece
    np.save(tmp_path / "in" / "a.npy", np.asarray(films["a"], order=order))
    np.savez(tmp_path / "in" / "deep" / "b.npz", features=np.asarray(films["deep/b"].astype(np.float32), order=order))
    source = FolderSource(tmp_path / "in")
    assert str(import_videos(source, tmp_path / "out", encoder=CLIP_L14, rate=2.0, width=D)) == "2 written, 0 kept"
    check(tmp_path / "out", films, 2.0)


def test_lmdb_of_npz(tmp_path, films):
    source = LmdbSource(lmdb_of(tmp_path / "lmdb", {name: npz(features=array) for name, array in films.items()}))
    import_videos(source, tmp_path / "out", **MAD)
    check(tmp_path / "out", films)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_everything_that_does_not_fit_is_told_at_once_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    nan, infinite, large = features(300), features(300), features(300, dtype=np.float32)
    nan[123, 4], infinite[5, 0], large[0, 1] = np.nan, np.inf, 1e6
    arrays = {
        "good": features(300), "nan": nan, "infinite": infinite, "large": large, "narrow": features(300, width=8), "flat": features(300)[0],
        "short": features(200), "long": features(900), "empty": features(0), "whole": np.zeros((300, D), np.int32),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / "in" / f"{name}.npy", array)
    np.save(tmp_path / "in" / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "in" / "pickle.npy").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "in" / "cut.npy").write_bytes((tmp_path / "in" / "good.npy").read_bytes()[:1000])
    (tmp_path / "in" / "zip.npz").write_bytes(npz(features=features(300))[:2000])
    (tmp_path / "in" / "evil.npz").write_bytes(npz(features=np.array([Evil()], dtype=object)))
    names = [*arrays, "objects", "pickle", "cut", "zip", "evil", "absent", "../outside", "/etc/passwd", ""]
    options = {**MAD, "ids": names, "durations": dict.fromkeys(arrays, 60.0)}
    result = import_videos(FolderSource(tmp_path / "in"), tmp_path / "out", **options, on_bad="skip")
    assert result.written == 1 and sum(result.skipped.values()) == len(names) - 1 == len(result.reasons)
    assert result.skipped == {"not finite": 3, "wrong shape": 3, "too short": 2, "too long": 1, "unreadable": 9}
    told = dict(zip(names[1:], result.reasons, strict=True))
    assert "frame 123 (24.6 s) holds NaN" in told["nan"] and "frame 5 (1 s)" in told["infinite"] and "beyond float16" in told["large"]
    assert "(300, 8); wanted is floating numbers of shape (frames, 12)" in told["narrow"]
    assert "ends after 40 s at 5 frames a second; the video lasts 60 s" in told["short"] and "is the rate right?" in told["long"]
    assert "holds no absent.npy" in told["absent"] and "no name of a file below" in told["../outside"] and "no name" in told["/etc/passwd"]
    assert all("\n" not in reason for reason in result.reasons)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.features"] and not (tmp_path / "unpickled").exists()
    with pytest.raises(UserError, match=r"18 entries cannot be imported: .*narrow.*holds no absent"):
        import_videos(FolderSource(tmp_path / "in"), tmp_path / "out", **options)


@pytest.mark.parametrize("seconds", [np.nan, np.inf, 0.0, -5.0])
def test_durations_that_are_none(tmp_path, seconds):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", features(10))
    with pytest.raises(UserError, match="s is none"):
        import_videos(FolderSource(tmp_path / "in"), tmp_path / "out", **MAD, durations={"a": seconds})


def test_hdf5_that_does_not_fit(mad, tmp_path):
    with pytest.raises(UserError, match="holds no group or dataset '0003_Film'"):
        import_videos(Hdf5Source(mad), tmp_path / "out", **MAD, ids=["0001_Film", "0003_Film"])
    assert (tmp_path / "out" / "0001_Film.features").exists()
    (tmp_path / "cut.h5").write_bytes(mad.read_bytes()[:3000])
    for path, message in ((tmp_path / "cut.h5", "not an HDF5 file"), (tmp_path / "none.h5", "no such file")):
        with pytest.raises(UserError, match=message):
            Hdf5Source(path)


def test_sources_that_are_none(tmp_path):
    pytest.importorskip("lmdb")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    for make, path, message in (
        (FolderSource, tmp_path / "none", "no such folder"), (FolderSource, tmp_path / "empty", "holds no .npy"),
        (LmdbSource, tmp_path / "none", "no such LMDB"), (LmdbSource, tmp_path / "text", "not an LMDB"), (LmdbSource, tmp_path / "empty", "not an LMDB"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            make(path)
    assert os.listdir(tmp_path / "empty") == []
    np.save(tmp_path / "empty" / "a.npy", features(3))
    np.savez(tmp_path / "empty" / "a.npz", features(3))
    with pytest.raises(UserError, match="are both 'a'"):
        FolderSource(tmp_path / "empty")


def test_without_the_optional_packages_one_line_says_so(tmp_path, monkeypatch):
    for module, make in (("h5py", Hdf5Source), ("lmdb", LmdbSource)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf'{module} is not installed; pip install "revision-jax\[features\]"'):
            make(tmp_path)


def queries():
    rng = np.random.default_rng(0)
    return {str(i): rng.normal(size=(3 + i, D)).astype(np.float32) for i in range(5)}


def test_query_tokens(tmp_path):
    content = queries()
    values = {key: npz(token_features=tokens, cls_features=tokens[:1, :4]) for key, tokens in content.items()}
    texts = {key: f"Query {key}." for key in content} | {"4": "query 3"}  # found by the text as it is asked, and these two are one
    result = import_queries(LmdbSource(lmdb_of(tmp_path / "lmdb", values)), tmp_path / "q", encoder=CLIP_L14, width=D, queries=texts, max_tokens=5)
    assert str(result) == "4 written, 1 kept"
    store = TextFeatureStore(tmp_path / "q")
    store.require(CLIP_L14)
    for key in "0123":
        found = store.features(f"query {key}")
        np.testing.assert_array_equal(found["tokens"], content[key][:5].astype(np.float16))
        np.testing.assert_array_equal(found["vectors"], content[key][:1, :4].astype(np.float16))


def test_query_tokens_of_hdf5_by_their_text(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        for key, tokens in queries().items():
            file[f"query {key}"] = tokens
    import_queries(Hdf5Source(tmp_path / "tokens.h5"), tmp_path / "q", encoder=CLIP_L14, width=D)
    store = TextFeatureStore(tmp_path / "q")
    assert sorted(store.texts()) == [f"query {i}" for i in range(5)] and set(store.arrays) == {"tokens"}
    np.testing.assert_array_equal(store.read("query 2")["tokens"], queries()["2"].astype(np.float16))


def test_queries_that_do_not_fit(tmp_path):
    good = np.ones((4, D), np.float32)
    values = {
        "good": npz(token_features=good, cls_features=good[0]), "nan": npz(token_features=good * np.nan, cls_features=good[0]), "broken": b"hello",
        "narrow": npz(token_features=good[:, 1:], cls_features=good[0]), "vectorless": npz(token_features=good),
        "other": npz(token_features=good, cls_features=good[0, 1:]),
        "objects": npz(token_features=np.array([Evil()], dtype=object)), "nothing": npz(something=good),
    }  # fmt: skip
    source = LmdbSource(lmdb_of(tmp_path / "lmdb", values))
    texts = {key: key for key in [*values, "absent"]}
    result = import_queries(source, tmp_path / "q", encoder=CLIP_L14, width=D, queries=texts, on_bad="skip")
    assert result.written == 1 and sum(result.skipped.values()) == len(texts) - 1 and list(TextFeatureStore(tmp_path / "q").texts()) == ["good"]
    (tmp_path / "q").unlink()
    with pytest.raises(UserError, match="8 entries cannot be imported"):
        import_queries(source, tmp_path / "q", encoder=CLIP_L14, width=D, queries=texts)
    with pytest.raises(UserError, match="holds no query that can be used"):
        import_queries(source, tmp_path / "q", encoder=CLIP_L14, width=D, queries={"absent": "absent"}, on_bad="skip")
    assert os.listdir(tmp_path) == ["lmdb"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "lmdb"])
def test_memory_does_not_grow_with_the_video(tmp_path, kind):
    """Peak resident memory of an import of 8 and of 80 MB, in processes of their own. LMDB maps its file as a whole, and the pages that were read count as
    resident until the system wants them back: there, what the process itself holds is looked at while it runs."""
    pytest.importorskip({"npy": "numpy", "npz": "numpy", "h5": "h5py", "lmdb": "lmdb"}[kind])
    code = """
        import sys, threading, time
        from pathlib import Path
        from revision_jax.data import feature_sources as sources
        from revision_jax.data.feature_import import import_videos
        kind, path, out = sys.argv[1:]
        field = lambda name: next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        seen = []
        watch = lambda: [(seen.append(field("RssAnon")), time.sleep(0.002)) for _ in range(100_000)]
        threading.Thread(target=watch, daemon=True).start()
        source = {"npy": sources.FolderSource, "npz": sources.FolderSource, "h5": sources.Hdf5Source, "lmdb": sources.LmdbSource}[kind](path)
        import_videos(source, out, encoder="clip", rate=5.0, width=512)
        print(max(seen) if kind == "lmdb" else field("VmHWM"))
    """
    peaks = []
    for frames in (8_000, 80_000):
        path, array = tmp_path / f"in-{frames}", np.tile(features(2000, width=512), (frames // 2000, 1))
        path.mkdir()
        if kind == "npy":
            np.save(path / "a.npy", array)
        elif kind == "npz":
            np.savez_compressed(path / "a.npz", features=array)
        elif kind == "h5":
            import h5py

            path /= "a.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("a", data=array, chunks=(256, 512))
        else:
            import lmdb

            with lmdb.open(str(path), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
                transaction.put(b"a", npz(features=array))
        command = [sys.executable, "-c", textwrap.dedent(code), kind, str(path), str(tmp_path / f"out-{frames}")]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    # MB; the larger one has 74 MB more features. LMDB maps its file, and what it read of that counts as resident.
    assert peaks[1] - peaks[0] < (24 + 74 if kind == "lmdb" else 24), peaks
