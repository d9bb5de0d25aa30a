import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import ConfigError, StageConfig, override
from revision_jax.data.pretraining import CAPTIONS, REMEMBERED, PretrainSource, apart_captions, point
from revision_jax.data.synthetic import language
from revision_jax.data.tokenizer import build_word_tokenizer

PROMPTS = "during which frames can we see does happen in the video ? from to not present yes no ."


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer([PROMPTS, *language.vocabulary_sentences(0, 20)], 256, 512)


@pytest.fixture(scope="module")
def source(tokenizer):
    return PretrainSource(get_config(), StageConfig(name="language", task="language", batch=4), tokenizer, 3)


def test_rows_are_a_function_of_seed_stage_and_index(tokenizer, source):
    batch = source.batch(5)
    copy = pickle.loads(pickle.dumps(source))
    for row in (3, 0, 2):
        example = copy.example(5 * 4 + row)
        assert set(example) == set(batch)
        for name, value in example.items():
            np.testing.assert_array_equal(value, batch[name][row])
    other_seed = PretrainSource(get_config(), source.stage, tokenizer, 4)
    other_stage = PretrainSource(get_config(), dataclasses.replace(source.stage, name="again"), tokenizer, 3)
    for changed in (source.batch(6), other_seed.batch(5), other_stage.batch(5)):
        assert not np.array_equal(batch["images"], changed["images"])


def test_a_batch_is_made_once_for_all_threads_and_forgotten_later(tokenizer):
    made = []

    class Counting(PretrainSource):
        def batch(self, step):
            made.append(step)
            return {"row": np.arange(4) + 4 * step}

    source = Counting(get_config(), StageConfig(name="pretrain", task="pretrain", batch=4), tokenizer, 0)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda index: int(source.example(index)["row"]), range(160)))
    assert rows == list(range(160)) and len(made) < 80  # a thread left far behind may make a batch again
    assert len(source._made) <= REMEMBERED


def test_shapes_and_words(tokenizer, source):
    batch = source.batch(0)
    length = source.stage.caption_len
    shapes = {
        "images": (4, 160, 160, 3), "labels": (4, 16), "phrase_labels": (4, 4, 16), "caption_ids": (4, 4, length), "caption_mask": (4, 4, length),
        "full_ids": (4, 32), "full_mask": (4, 32), "point_slots": (4, 120), "point_query": (4,),
        "point_after_ids": (4, 40), "point_after_mask": (4, 40), "point_answer_ids": (4, 8), "point_answer_mask": (4, 8),
    }  # fmt: skip
    assert {name: batch[name].shape for name in shapes} == shapes
    assert batch["images"].dtype == np.uint8 and batch["labels"].dtype == bool
    for name in ("caption", "full", "point_after", "point_answer"):
        ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
        assert (ids[~mask] == tokenizer.pad).all() and not (ids == tokenizer.unk).any()
    captions = batch["caption_ids"].reshape(16, -1)
    for row in range(4):
        asked = batch["point_query"][row]
        assert tokenizer.decode(batch["point_after_ids"][row].tolist()) == f"during which frames can we see {tokenizer.decode(captions[asked].tolist())} ?"
        shown = np.flatnonzero(batch["point_slots"][row] == asked)
        assert tokenizer.decode(batch["point_answer_ids"][row].tolist()) == (f"from {shown[0]} to {shown[-1]} ." if len(shown) else "not present .")
    plain = PretrainSource(get_config(), StageConfig(name="language", task="pretrain", batch=4), tokenizer, 3).batch(0)
    assert not [name for name in plain if name.startswith(("full", "point"))]
    np.testing.assert_array_equal(plain["images"], batch["images"])


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
