import dataclasses

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import ConfigError, StageConfig, override
from revision_jax.data.pretraining import CAPTIONS, PretrainSource, apart_captions, point
from revision_jax.data.synthetic import language
from revision_jax.data.tokenizer import build_word_tokenizer

PROMPTS = "during which frames can we see does happen in the video ? from to not present yes no ."


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer([PROMPTS, *language.vocabulary_sentences(0, 20)], 256, 512)


def test_batches_are_a_function_of_seed_stage_and_step(tokenizer):
    stage = StageConfig(name="language", task="language", batch=4)
    source = PretrainSource(get_config(), stage, tokenizer, 3)
    first, again = source.batch(5), PretrainSource(get_config(), stage, tokenizer, 3).example(5)
    assert set(first) == set(again) and all(np.array_equal(first[key], again[key]) for key in first)
    for other in (source.batch(6), PretrainSource(get_config(), stage, tokenizer, 4).batch(5)):
        assert not np.array_equal(first["images"], other["images"])
    assert source.collate([first]) is first
    with pytest.raises(ValueError, match="whole batch"):
        source.collate([first, again])


def test_shapes_and_words(tokenizer):
    stage = StageConfig(name="language", task="language", batch=4)
    batch = PretrainSource(get_config(), stage, tokenizer, 3).batch(0)
    shapes = {
        "images": (4, 160, 160, 3), "labels": (4, 16), "caption_ids": (16, 32), "caption_mask": (16, 32), "full_ids": (4, 32), "full_mask": (4, 32),
        "point_slots": (16, 120), "point_query": (16,), "point_after_ids": (16, 40), "point_after_mask": (16, 40),
        "point_answer_ids": (16, 8), "point_answer_mask": (16, 8),
    }  # fmt: skip
    assert {key: value.shape for key, value in batch.items()} == shapes
    assert batch["images"].dtype == np.uint8 and batch["labels"].dtype == bool
    for ids, mask in (("caption_ids", "caption_mask"), ("full_ids", "full_mask"), ("point_after_ids", "point_after_mask"), ("point_answer_ids", "point_answer_mask")):
        assert (batch[ids][~batch[mask]] == tokenizer.pad).all() and not (batch[ids] == tokenizer.unk).any()
    for row in range(16):
        caption = tokenizer.decode(batch["caption_ids"][batch["point_query"][row]])
        assert tokenizer.decode(batch["point_after_ids"][row]) == f"during which frames can we see {caption} ?"
        shown = np.flatnonzero(batch["point_slots"][row] == batch["point_query"][row])
        answer = tokenizer.decode(batch["point_answer_ids"][row])
        assert answer == (f"from {shown[0]} to {shown[-1]} ." if len(shown) else "not present .")
    plain = PretrainSource(get_config(), dataclasses.replace(stage, task="pretrain"), tokenizer, 3).batch(0)
    assert set(plain) == {"images", "labels", "caption_ids", "caption_mask"}


def test_apart_captions_exclude_what_one_picture_shows_together():
    labels = np.zeros((2, 2 * CAPTIONS), bool)
    labels[0, [0, 1]] = labels[1, [4, 5]] = True  # each picture's own
    labels[1, 0] = True  # caption 0 also holds for picture 1
    apart = apart_captions(labels)
    assert np.diagonal(apart).tolist() == [True, True, False, False, True, True, False, False]
    assert apart[1, 4] and apart[1, 5] and not apart[0, 4] and not apart[0, 1] and not apart[1, 2]
    np.testing.assert_array_equal(apart, apart.T)


def test_pointing_sequences():
    apart = np.ones((12, 12), bool)
    apart[0, 1:] = apart[1:, 0] = False  # caption 0 goes with no other
    absent, lengths = 0, []
    for seed in range(400):
        slots, query, answer = point(np.random.default_rng(seed), apart, 120)
        cuts = np.flatnonzero(np.diff(slots)) + 1
        runs = [part for part in np.split(slots, cuts) if part[0] >= 0]
        names = [int(part[0]) for part in runs]
        assert len(names) == len(set(names)) <= 6  # each run is one caption, and no caption has two
        assert all(apart[query, name] for name in names)
        lengths += [len(part) for part in runs]
        shown = np.flatnonzero(slots == query)
        assert answer == (None if not len(shown) else (shown[0], shown[-1]))
        absent += answer is None
    assert 0.33 < absent / 400 < 0.47
    assert max(lengths) > 60 and np.median(lengths) < 25
    slots, query, answer = point(np.random.default_rng(0), np.zeros((4, 4), bool), 120)
    assert (slots == -1).all() and answer is None and query == 0


def test_language_needs_a_dense_level(tokenizer):
    config = override(get_config(), ["train.stages=[]", "grounding.levels=[]"])
    with pytest.raises(ConfigError, match="dense level"):
        PretrainSource(config, StageConfig(name="language", task="language"), tokenizer, 0)
