"""Shapes from the config alone are those of real batches."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import ConfigError, StageConfig, override
from revision_jax.data.batch_shapes import batch_shapes
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.packed_row import empty_row
from revision_jax.data.pretraining import PretrainSource
from revision_jax.data.synthetic import language
from revision_jax.data.synthetic.world import split_seed
from revision_jax.data.tokenizer import build_word_tokenizer
from tests.data.memory_store import E, MemoryStore, N, store_path

LENGTH = 1500.0


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(["during which frames can we see does happen in the video ? from to not present yes no ."], 256, 512)


class HalfStore(MemoryStore):
    """With features in the type that stores on disk have."""

    def __init__(self, path):
        super().__init__(path)
        self.header = dataclasses.replace(self.header, arrays={name: (shape, "float16") for name, (shape, _) in self.header.arrays.items()})


@pytest.fixture(scope="module")
def corpus():
    videos = [TrainVideo(f"film {i}", LENGTH, store_path(i, LENGTH), store_path(i, LENGTH, 4.0), (), split_seed("train", i)) for i in range(3)]
    return Corpus(videos, open_store=HalfStore)


@pytest.fixture(scope="module")
def config():
    """The tiny config, with the widths of the store that keeps films in memory."""
    smaller = override(get_config(), ["grounding.levels.sparse.tokens=20", "grounding.levels.nested.span_s=120", "grounding.levels.nested.stride_s=120"])
    vision = dataclasses.replace(smaller.vision, projection=E, grids=((2 * N, 2),), merge=2)
    signal = dataclasses.replace(smaller.decoder.signal, similarity="late")
    return dataclasses.replace(
        smaller, vision=vision, text=dataclasses.replace(smaller.text, projection=E), decoder=dataclasses.replace(smaller.decoder, signal=signal)
    )


def stages():
    yield StageConfig(name="dense", level="dense", batch=2)
    yield StageConfig(name="frames", level="dense", batch=2, examples=dataclasses.replace(StageConfig().examples, frames=30))
    yield StageConfig(name="presence", task="presence", level="sparse", batch=2)
    yield StageConfig(name="sparse", level="sparse", batch=2)
    yield StageConfig(name="fewer", level="sparse", windows=8, batch=2)
    yield StageConfig(name="nested", level="nested", windows=16, batch=2)
    yield StageConfig(name="patch", level="patch", batch=2)


@pytest.mark.parametrize("stage", [pytest.param(stage, id=stage.name) for stage in stages()])
def test_they_are_those_of_the_curriculum(config, corpus, tokenizer, stage):
    made = Curriculum(config, stage, corpus, tokenizer, 0).shapes
    wanted = {name: ((2, *shape), np.dtype(dtype)) for name, (shape, dtype) in made.items()}
    assert batch_shapes(config, stage) == (wanted,)


def test_of_a_pooled_similarity_there_are_no_patch_tokens(config, corpus, tokenizer):
    pooled = dataclasses.replace(config.decoder.signal, similarity="pooled")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, signal=pooled))
    stage = StageConfig(name="dense", level="dense", batch=2)
    assert batch_shapes(config, stage)[0]["tokens"][0] == (2, *Curriculum(config, stage, corpus, tokenizer, 0).shapes["tokens"][0])
    assert batch_shapes(config, stage)[0]["tokens"][0][2] == 0


@pytest.mark.parametrize("task", ["pretrain", "language"])
def test_they_are_those_of_the_picture_stages(task):
    stage = StageConfig(name=task, task=task, batch=2, caption_len=20)
    words = build_word_tokenizer(["during which frames can we see ? from to not present yes no .", *language.vocabulary_sentences(0, 20)], 256, 512)
    batch = PretrainSource(get_config(), stage, words, 0).batch(0)
    assert batch_shapes(get_config(), stage) == ({name: (array.shape, array.dtype) for name, array in batch.items()},)


def test_conversations_have_one_for_each_row():
    config = importlib.import_module("configs.videollama3_2b").get_config()
    stage = config.train.stages[-1]
    found = batch_shapes(config, stage)
    assert len(found) == len(stage.conversation.rows)
    row = empty_row(stage.conversation.rows[0], 3 * config.vision.patch**2)
    assert found[0] == {name: ((stage.batch, *array.shape), array.dtype) for name, array in row.items()}


def test_stored_query_features_stand_in_place_of_ids(config):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, queries="store"))
    found = batch_shapes(config, StageConfig(name="dense", level="dense", batch=2))[0]
    assert "query_ids" not in found and found["query_tokens"][0] == (2, config.grounding.query_len, config.text.width)


def test_windows_that_are_no_whole_runs_raise(config):
    with pytest.raises(ConfigError, match=r"stages\.nested\.windows"):
        batch_shapes(config, StageConfig(name="nested", level="nested", windows=7))
