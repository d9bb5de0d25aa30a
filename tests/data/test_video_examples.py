"""data/video_examples.py: the retrieval level, one token a video."""

import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.errors import UserError
from tests.data.memory_store import MemoryStore, store_path
from tests.data.revision_stages import WORDS, make, source


def clips(count, same=()):
    """Clips of different lengths, each with captions about all of it; those of `same` have one caption in common."""
    videos = []
    for number in range(count):
        seconds = 12.0 + number
        captions = [f"clip {number} in words {k}" for k in range(2)] + ["the same words"] * (number in same)
        questions = tuple(TrainQuestion(caption, ((0.0, seconds),)) for caption in captions)
        videos.append(TrainVideo(f"clip {number}", seconds, store_path(number, seconds, 5.0), None, questions))
    return Corpus(videos, open_store=MemoryStore)


def test_the_answer_names_the_videos_place_in_the_group():
    curriculum = make(clips(9), "retrieval")
    places, asked = set(), []
    for index in range(36):
        example = curriculum.example(index)
        shown = [source(example["frames"][slot], example["frame_mask"][slot]) for slot in range(3)]
        own = int(curriculum.question.query.split()[1])
        text = WORDS.decode(example["answer_ids"].tolist())
        assert len({video for video, _ in shown}) == 3 and example["window_mask"].all()
        for video, numbers in shown:  # from the first frame to the last
            assert numbers.tolist() == np.linspace(0, 5 * (12 + video) - 1, 10, dtype=np.int32).tolist()
        if index % 2 == 0:
            place = [video for video, _ in shown].index(own)
            assert curriculum.answer == (place, place) and text == f"In video {place}"
            places.add(place)
            asked.append(curriculum.question.query)
        else:
            assert own not in [video for video, _ in shown] and text == "Not Present"
    assert places == {0, 1, 2} and len(set(asked)) == 18  # an epoch of captions


def test_videos_that_answer_the_same_question_are_no_negatives():
    curriculum = make(clips(6, same=(0, 1, 2)), "retrieval")
    for index in range(60):
        example = curriculum.example(index)
        if curriculum.question.query == "the same words":
            shown = [source(example["frames"][slot], example["frame_mask"][slot])[0] for slot in range(3)]
            assert sum(video < 3 for video in shown) == (index % 2 == 0)


def test_a_corpus_that_is_too_small_is_told():
    with pytest.raises(ConfigError, match=r"stages\.retrieval\.windows: 3 videos of a group must be fewer than the training data's 3 videos"):
        make(clips(3), "retrieval")
    with pytest.raises(UserError, match="every other video answers 'the same words' too"):
        curriculum = make(clips(4, same=(0, 1, 2, 3)), "retrieval")
        for index in range(48):
            curriculum.example(index)
