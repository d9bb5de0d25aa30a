import pickle

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import override
from revision_jax.data import corpus as corpus_module
from revision_jax.data.corpus import Corpus, Film, TrainQuestion, TrainVideo
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader
from revision_jax.errors import UserError
from tests.data.memory_store import MemoryStore, store_path


def film(seconds=1000.0, rate=1.0):
    store = MemoryStore(store_path(3, seconds, rate))
    return Film(store), store


def test_gather_gives_the_frames_asked_for_and_zeros_outside():
    reader, store = film()
    rng = np.random.default_rng(0)
    for index in (np.arange(230, 260), rng.integers(-50, 1100, (7, 9)), np.array([5]), np.array([-3, 2000]), np.arange(998, 1003)):
        got = reader.gather(index, "tokens")
        assert got.shape == (*index.shape, 4, 8)
        real = (index >= 0) & (index < 1000)
        np.testing.assert_array_equal(got[real], store.data["tokens"][index[real]])
        assert not got[~real].any()
        place = np.full((*index.shape, 4, 8), 7.0, np.float32)
        assert reader.gather(index, "tokens", place) is place
        np.testing.assert_array_equal(place, got)


def test_windows_that_overlap_read_each_block_once():
    reader, store = film()
    index = np.arange(100)[:, None] * 5 + np.arange(0, 120, 3)  # frames 0 to 612
    np.testing.assert_array_equal(reader.gather(index, "frame"), store.data["frame"][index])
    assert store.reads == [*(("frame", 60 * block, 60) for block in range(10)), ("frame", 600, 13)]  # of the last what is wanted of it


def test_likeness_is_the_cosine_to_the_events_mean_direction(monkeypatch):
    reader, store = film()
    event = (np.arange(1000) >= 300) & (np.arange(1000) < 310)
    unit = store.data["frame"] / np.linalg.norm(store.data["frame"], axis=1, keepdims=True)
    for piece in (64, 4096):
        monkeypatch.setattr(corpus_module, "PIECE", piece)
        np.testing.assert_allclose(reader.likeness(event), unit @ unit[event].mean(0), rtol=1e-4, atol=1e-5)


def test_only_so_many_files_are_open(monkeypatch):
    monkeypatch.setattr(corpus_module, "OPEN_FILMS", 2)
    opened = []
    corpus = Corpus([TrainVideo(str(i), 60.0, store_path(i, 60.0)) for i in range(3)], open_store=lambda path: opened.append(path) or MemoryStore(path))
    for number in (0, 1, 0, 2, 0, 1):
        assert corpus.film(number).gather(np.array([5]), "frame")[0, 1] == number
    assert len(opened) == 4 and len(corpus._films) == 2  # film 1 was closed, being the one that was read longest ago


def write_store(path, config, names=("frame", "tokens", "change"), seconds=70):
    arrays = {"frame": ((config.vision.output,), "float16"), "tokens": ((25, config.vision.output), "float16"), "change": ((25,), "float16")}
    arrays = {name: arrays[name] for name in names}
    with FeatureWriter(path, FeatureHeader("hash", "encoder", 1.0, float(seconds), arrays)) as writer:
        writer.append(np.arange(seconds, dtype=np.float64), {name: np.full((seconds, *shape), 2.0, dtype) for name, (shape, dtype) in arrays.items()})


def test_the_index_comes_back_as_written(tmp_path):
    config = get_config()
    write_store(tmp_path / "a.features", config)
    videos = [
        TrainVideo("a", 70.0, tmp_path / "a.features", None, (TrainQuestion("a dog runs", ((1.0, 5.5),), "one", ("the dog runs",)),)),
        TrainVideo("b", 60.0, tmp_path / "a.features", tmp_path / "sub/b.patch", (), seed=10_000_000, fps=5),
    ]
    path = Corpus.write_index(tmp_path, videos)
    assert str(tmp_path) not in path.read_text()  # the folder may move
    corpus = Corpus.open(config, tmp_path)
    assert list(corpus.videos) == videos
    assert corpus.patch_film(0) is None
    assert corpus.questions(1).script.seed == 10_000_000
    for copy in (corpus, pickle.loads(pickle.dumps(corpus))):
        got = copy.film(0).gather(np.array([0, 69, 70]), "frame")
        assert (got[:2] == 2.0).all() and not got[2].any()


def test_what_does_not_fit_is_told_in_one_line(tmp_path):
    config = get_config()
    with pytest.raises(UserError, match=r"corpus\.json: no such file"):
        Corpus.open(config, tmp_path)
    for text in ("{", "[]", '{"version": 1}', '{"version": 1, "videos": [{"video_id": "a"}]}'):
        (tmp_path / "corpus.json").write_text(text)
        with pytest.raises(UserError, match="not a corpus index"):
            Corpus.open(config, tmp_path)
    (tmp_path / "corpus.json").write_text('{"version": 9, "videos": []}')
    with pytest.raises(UserError, match="version 9"):
        Corpus.open(config, tmp_path)
    Corpus.write_index(tmp_path, [])
    with pytest.raises(UserError, match="lists no video"):
        Corpus.open(config, tmp_path)
    write_store(tmp_path / "a.features", config, names=("frame",))
    Corpus.write_index(tmp_path, [TrainVideo("a", 70.0, tmp_path / "a.features")])
    with pytest.raises(UserError, match="no patch tokens"):
        Corpus.open(config, tmp_path)
    narrow = override(config, ["vision.projection=64", "text.projection=64"])
    with pytest.raises(UserError, match="width 96, the config's are 64"):
        Corpus.open(narrow, tmp_path)
