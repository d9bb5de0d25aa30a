"""data/text_features.py: text features by the query's text."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from revision_jax.data import text_features
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader, StoreError
from revision_jax.data.text_features import TextFeatureStore, TextFeatureWriter
from revision_jax.errors import UserError

ARRAYS = {"tokens": (("S", 8), "float16"), "vector": ((4,), np.float16)}


def sample(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"query number {i} — ein Fluß": {
            "tokens": rng.normal(size=(int(rng.integers(1, 12)), 8)).astype(np.float16), "vector": rng.normal(size=4).astype(np.float16),
        }
        for i in range(count)
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path, content = tmp_path_factory.mktemp("text") / "queries.features", sample(500)
    with TextFeatureWriter(path, "clip", ARRAYS) as writer:
        for text, arrays in content.items():
            assert writer.add(text, arrays) and text in writer
    return path, content


def test_everything_comes_back(written):
    path, content = written
    store = TextFeatureStore(path)
    assert len(store) == 500 and store.encoder == "clip" and store.arrays == {"tokens": (("S", 8), "float16"), "vector": ((4,), "float16")}
    assert list(store.texts()) == list(content)
    texts = list(content)[::-7]
    for text, found in zip(texts, store.read_many(texts), strict=True):
        for name, array in content[text].items():
            assert found[name].dtype == np.float16
            np.testing.assert_array_equal(found[name], array)
            np.testing.assert_array_equal(store.read(text)[name], array)


def test_one_query_costs_one_record(written, monkeypatch):
    path, content = written
    store, asked = TextFeatureStore(path), []
    plain = store._read
    monkeypatch.setattr(store, "_read", lambda numbers: asked.extend(numbers) or plain(numbers))
    store.read(list(content)[123])
    assert asked == [123]
    assert list(content)[7] in store and "something else" not in store and store.missing(["something else", next(iter(content))]) == ["something else"]
    assert asked == [123]


def test_what_is_not_there_is_a_key_error(written):
    with pytest.raises(KeyError, match="no features of the query 'query number 3'"):
        TextFeatureStore(written[0]).read("query number 3")


def test_another_encoder_is_refused(written):
    store = TextFeatureStore(written[0])
    store.require("clip")
    with pytest.raises(UserError, match="made by 'clip', not 'siglip'"):
        store.require("siglip")


def test_a_text_is_kept_once(tmp_path):
    content = sample(2)
    (text, first), (_, second) = content.items()
    with TextFeatureWriter(tmp_path / "a", "clip", ARRAYS) as writer:
        assert writer.add(text, first) and not writer.add(text, second) and len(writer) == 1
    np.testing.assert_array_equal(TextFeatureStore(tmp_path / "a").read(text)["vector"], first["vector"])


def test_an_empty_store(tmp_path):
    TextFeatureWriter(tmp_path / "a", "clip", ARRAYS).close()
    store = TextFeatureStore(tmp_path / "a")
    assert len(store) == 0 and "x" not in store and list(store.texts()) == []


def test_threads_and_pickled_copies(written):
    store, content = TextFeatureStore(written[0]), written[1]
    texts = list(content)
    same = lambda seed: all(
        np.array_equal(store.read(text)["tokens"], content[text]["tokens"]) for text in np.random.default_rng(seed).choice(texts, 100).tolist()
    )
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(4)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(texts[9])["tokens"], content[texts[9]]["tokens"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_is_not_a_finite_number_is_refused(tmp_path, value):
    (text, arrays), = sample(1).items()
    with pytest.raises(UserError, match="vector of the query 'query number 0"), TextFeatureWriter(tmp_path / "a", "clip", ARRAYS) as writer:
        writer.add(text, {**arrays, "vector": np.array([0, value, 0, 0], np.float32)})
    assert os.listdir(tmp_path) == []


def test_wrong_arrays_are_refused(tmp_path):
    (text, arrays), = sample(1).items()
    writer = TextFeatureWriter(tmp_path / "a", "clip", ARRAYS)
    with pytest.raises(ValueError, match="arrays are tokens"):
        writer.add(text, {"tokens": arrays["tokens"]})
    for wrong in (np.zeros((3, 9)), np.zeros(8), np.zeros((2, 3, 8))):
        with pytest.raises(ValueError, match="tokens has shape"):
            writer.add(text, {**arrays, "tokens": wrong})
    writer.abort()


@pytest.mark.parametrize("keep", [0, 100, -1, -70_000])
def test_truncated_stores_are_refused(written, tmp_path, keep):
    (tmp_path / "cut").write_bytes(written[0].read_bytes()[:keep])
    with pytest.raises(UserError, match="cut: ") as caught:
        store = TextFeatureStore(tmp_path / "cut")
        store.read_many(list(written[1]))
    assert "\n" not in str(caught.value)


def test_foreign_and_missing_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such store"):
        TextFeatureStore(tmp_path / "none")
    (tmp_path / "text").write_text("hello " * 100)
    with pytest.raises(UserError, match="not a complete store"):
        TextFeatureStore(tmp_path / "text")
    with FeatureWriter(tmp_path / "video", FeatureHeader("h", "e", 1.0, 9.0, {"frame": ((4,), "float16")})) as writer:
        writer.append(np.arange(9.0), {"frame": np.zeros((9, 4))})
    with pytest.raises(UserError, match="not a store of text features"):
        TextFeatureStore(tmp_path / "video")
    monkeypatch.setattr(text_features, "VERSION", 2)
    TextFeatureWriter(tmp_path / "newer", "clip", ARRAYS).close()
    monkeypatch.undo()
    with pytest.raises(UserError, match="version 2, this program reads version 1"):
        TextFeatureStore(tmp_path / "newer")


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        TextFeatureWriter(tmp_path / "file" / "a", "clip", ARRAYS)
