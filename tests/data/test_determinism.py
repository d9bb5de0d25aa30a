"""Batches of annotated films from real stores: a function of (seed, step, process), whoever makes them and from wherever a run goes on; no sample twice in an
epoch; and a frame copied twice on its way from the disk to the batch."""

from itertools import pairwise

import numpy as np
import pytest

from revision_jax.data import corpus as corpus_module
from revision_jax.data import record_layout
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.feature_writer import FeatureWriter
from revision_jax.data.features import FeatureHeader
from revision_jax.data.pipeline import batches
from tests.data.films import listed
from tests.data.memory_store import E
from tests.data.revision_stages import WORDS, make

BATCH, STEPS = 8, 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """`films.listed` on disk: frame k of film v holds k in its second number, v in its first."""
    folder, videos = tmp_path_factory.mktemp("stores"), []
    for number, video in enumerate(listed().videos):
        path = folder / f"{number}.features"
        frames = np.random.default_rng(number).standard_normal((1500, E)).astype(np.float16)
        frames[:, 0], frames[:, 1] = number, np.arange(1500)
        with FeatureWriter(path, FeatureHeader(f"id:{number}", "encoder", 1.0, 1500.0, {"frame": ((E,), "float16")}, block_s=100.0)) as writer:
            writer.append(np.arange(1500.0), {"frame": frames})
        videos.append(TrainVideo(video.video_id, 1500.0, path, None, video.questions))
    return Corpus(videos)


def taken(stream):
    found = [{name: np.array(value) for name, value in batch.items()} for batch in stream]
    getattr(stream, "close", lambda: None)()
    return found


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module", params=["1a", "2"])
def curriculum(request, corpus):
    return make(corpus, request.param)


@pytest.fixture(scope="module")
def whole(curriculum):
    return taken(batches(curriculum, batch=BATCH, steps=STEPS))


def test_four_processes_taken_together_make_the_batch_of_one(curriculum, whole):
    parts = [taken(batches(curriculum, batch=BATCH, steps=STEPS, process_index=process, process_count=4)) for process in range(4)]
    assert_same(whole, [{name: np.concatenate([part[name] for part in rows]) for name in rows[0]} for rows in zip(*parts, strict=True)])


def test_a_run_goes_on_at_any_step(curriculum, whole):
    for start in (1, 4, STEPS):
        assert_same(whole[start:], taken(batches(curriculum, batch=BATCH, steps=STEPS, start=start, threads=1, prefetch=1)))


@pytest.mark.slow
def test_four_workers_make_the_same_batches_from_any_step(curriculum, whole):
    assert_same(whole, taken(batches(curriculum, batch=BATCH, steps=STEPS, workers=4)))
    part = taken(batches(curriculum, batch=BATCH, steps=STEPS, start=3, workers=4, process_index=1, process_count=2))
    assert_same([{name: value[BATCH // 2 :] for name, value in batch.items()} for batch in whole[3:]], part)


def test_another_seed_makes_other_batches(corpus, curriculum, whole):
    other = make(corpus, curriculum.stage.name, seed=8)
    assert not np.array_equal(other.batch(0)["frames"], whole[0]["frames"][: other.stage.batch])


def test_no_sample_is_seen_twice_in_an_epoch(corpus):
    """Questions of a batch, positive and contrastive: each question as often as it has moments, epoch after epoch."""
    curriculum = make(corpus, "1a")
    pairs = curriculum.targets.epoch
    asked = [text for batch in batches(curriculum, batch=12, steps=4 * pairs // 12) for text in map(WORDS.decode, batch["after_ids"].tolist())]
    for epoch in range(2):
        part = asked[2 * pairs * epoch : 2 * pairs * (epoch + 1)]
        for kind in (0, 1):
            texts = part[kind::2]
            assert len(texts) == pairs and len(set(texts)) == pairs - 4  # four questions have two moments
            assert all(texts.count(text) == (2 if "twice" in text else 1) for text in texts)
        assert part[0::2] == part[1::2]  # each with its contrastive window
    assert asked[: 2 * pairs] != asked[2 * pairs :]


@pytest.mark.parametrize("stage", ["1a", "2"])
def test_a_frame_is_copied_twice_between_the_disk_and_the_batch(corpus, stage, monkeypatch):
    """From the disk into a block (by the system), from the block into its row of the batch; what the pipeline hands over is that batch."""
    filled, moved = [], []
    read, take = record_layout.read, np.take

    def reading(file, position, *buffers):
        read(file, position, *buffers)
        filled.append((buffers[-1].ctypes.data, buffers[-1].nbytes))

    def taking(source, index, axis, out, mode):
        assert any(place <= source.ctypes.data and source.ctypes.data + source.nbytes <= place + size for place, size in filled)
        moved.append((out.ctypes.data, out.nbytes))
        return take(source, index, axis, out, mode)

    monkeypatch.setattr(record_layout, "read", reading)
    monkeypatch.setattr(corpus_module.np, "take", taking)
    (batch,) = batches(make(corpus, stage), batch=4, steps=1, threads=1)
    monkeypatch.undo()
    frames = batch["frames"]
    places = sorted(moved)
    assert all(low + size <= high for (low, size), (high, _) in pairwise(places))  # none is written twice
    assert places[0][0] >= frames.ctypes.data and sum(places[-1]) <= frames.ctypes.data + frames.nbytes
    assert sum(size for _, size in moved) == int(batch["frame_mask"].sum()) * E * 2
