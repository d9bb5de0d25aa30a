"""data/targets.py: every question with each of its moments once an epoch, in an order that the seed gives."""

import pickle
from collections import Counter

import numpy as np
import pytest

from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.synthetic.world import split_seed
from revision_jax.data.targets import Targets
from revision_jax.errors import UserError
from tests.data.films import listed
from tests.data.memory_store import MemoryStore, store_path

RNG = np.random.default_rng(0)


def about(target):
    return target.video, target.question.query, target.moment


def test_an_epoch_shows_every_pair_once_and_the_next_one_again_in_another_order():
    targets = Targets(listed(), "0 1a")
    assert targets.epoch == 4 * 6
    epochs = [[about(targets.at(24 * epoch + index, RNG)) for index in range(24)] for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 24
    assert epochs[0] != epochs[1] != epochs[2] and set(epochs[0]) == set(epochs[1])
    assert Counter(video for video, *_ in epochs[0]) == dict.fromkeys(range(4), 6)


def test_the_order_is_the_keys_and_nothing_elses():
    targets, again = Targets(listed(), "0 1a"), pickle.loads(pickle.dumps(Targets(listed(), "0 1a")))
    numbers = list(range(40))
    assert [about(targets.at(n, RNG)) for n in numbers] == [about(again.at(n, np.random.default_rng(5))) for n in numbers]
    other = Targets(listed(), "1 1a")
    assert [about(targets.at(n, RNG)) for n in numbers] != [about(other.at(n, RNG)) for n in numbers]


def test_what_a_stage_leaves_out():
    corpus = listed()
    assert Targets(corpus, "", longest_s=12.0).epoch == 4 * 5  # all but the half minute
    assert Targets(corpus, "", longest_s=6.0).epoch == 4
    videos = [*corpus.videos, TrainVideo("short", 600.0, store_path(9, 600.0), None, (TrainQuestion("a thing", ((1.0, 2.0),)),))]
    mixed = Corpus(videos, open_store=MemoryStore)
    assert Targets(mixed, "").epoch == 25 and Targets(mixed, "", min_duration_s=1000.0).epoch == 24
    with pytest.raises(UserError, match=r"no training video has a question with a moment of at most 3 s in a video of at least 100 s"):
        Targets(corpus, "", longest_s=3.0, min_duration_s=100.0)


def test_wordings_differ_and_the_moment_stays():
    question = TrainQuestion("a dog runs", ((5.0, 9.0),), variants=("the dog is running",))
    corpus = Corpus([TrainVideo("film", 600.0, store_path(1, 600.0), None, (question,))], open_store=MemoryStore)
    drawn = [Targets(corpus, "").at(number, RNG) for number in range(30)]
    assert {target.question.query for target in drawn} == {"a dog runs", "the dog is running"} and {target.moment for target in drawn} == {(5.0, 9.0)}


def test_a_rendered_world_has_no_epochs():
    corpus = Corpus([TrainVideo("film", 900.0, store_path(0, 900.0), None, (), split_seed("train", 0))], open_store=MemoryStore)
    targets = Targets(corpus, "")
    assert targets.epoch is None
    drawn = {targets.at(0, np.random.default_rng(seed)).question.query for seed in range(20)}
    assert len(drawn) > 10


def test_a_moment_behind_the_features_is_told():
    videos = [TrainVideo("film", 600.0, store_path(1, 590.0), None, (TrainQuestion("the end", ((595.0, 599.0),)),))]
    with pytest.raises(UserError, match=r"film: 'the end' happens at 595 s, beyond the end of its features \(590\.0 s\)"):
        Targets(Corpus(videos, open_store=MemoryStore), "").at(0, RNG)
