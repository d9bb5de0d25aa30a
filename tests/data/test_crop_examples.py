"""data/crop_examples.py: ReVisionLLM's groups of stage 2."""

import dataclasses

import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.windows import overlaps_any
from tests.data.films import listed
from tests.data.memory_store import MemoryStore, store_path
from tests.data.revision_stages import WORDS, config, make, source

SPAN = 60.0


def windows(example):
    """(film, start in seconds) of each window that is there."""
    found = [source(example["frames"][w], example["frame_mask"][w]) for w in np.flatnonzero(example["window_mask"])]
    assert len({film for film, _ in found}) == 1
    return found[0][0], [float(numbers[0]) for _, numbers in found]


def test_crops_of_the_event_stand_side_by_side_among_windows_of_the_film_in_order_of_time():
    curriculum = make(listed(), "2")
    counts, places, orders = set(), set(), 0
    for index in range(96):
        example = curriculum.example(index)
        film, starts = windows(example)
        (first, last), moments = curriculum.answer, curriculum.question.moments
        assert curriculum.question.query.endswith(f"film {film}") and len(starts) == 12
        crops, others = starts[first : last + 1], starts[:first] + starts[last + 1 :]
        counts.add(len(crops))
        places.add(first)
        assert any(all(start <= begin and end <= start + SPAN for start in crops) for begin, end in moments)
        assert not any(overlaps_any(moments, start, start + SPAN) for start in others)
        assert others == sorted(others) and len(set(others)) == len(others)
        orders += starts != sorted(starts)
        assert WORDS.decode(example["answer_ids"].tolist()) == f"From {first} to {last + 1}."  # one past the last
    assert counts == {2, 3} and len(places) > 6 and orders > 60  # crops are not where they are in time


def test_a_zoomed_group_has_fewer_windows_each_several_times_in_a_row():
    curriculum = make(listed(), "2", examples={"zooms": (1, 2, 5)})
    zooms = set()
    for index in range(60):
        example = curriculum.example(index)
        _, starts = windows(example)
        repeats = next(n for n in range(1, 13) if starts[:1] * n != starts[:n] or n == 12)
        zoom = max(z for z in (1, 2, 5) if z < repeats or z == 1)
        zooms.add(zoom)
        assert len(starts) == 12 // zoom * zoom and example["window_mask"].sum() == len(starts)
        assert starts == [start for start in starts[::zoom] for _ in range(zoom)]
        first, last = curriculum.answer
        assert first % zoom == 0 and (last + 1) % zoom == 0
        shown = [any(overlaps_any(curriculum.question.moments, start, start + SPAN) for start in starts[w : w + 1]) for w in range(len(starts))]
        assert shown == [first <= w <= last for w in range(len(starts))]
    assert zooms == {1, 2, 5}


@pytest.mark.parametrize("strategy", ["random", "swap", "query_swap"])
def test_a_group_may_hold_nothing_of_what_is_asked(strategy):
    corpus = listed()
    curriculum = make(corpus, "2", absent=0.5, negatives=((strategy, 1.0),))
    for index in range(48):
        example = curriculum.example(index)
        film, starts = windows(example)
        assert (curriculum.answer is None) == (index % 2 == 1) and len(starts) == 12
        if curriculum.answer is None:
            assert not any(overlaps_any(corpus.questions(film).taken(curriculum.question), start, start + SPAN) for start in starts)
            assert WORDS.decode(example["answer_ids"].tolist()) == "Not Present"
            if strategy == "random":
                assert curriculum.question.query.endswith(f"film {film}") and starts == sorted(starts)


def test_a_film_with_few_windows_has_a_group_that_is_not_full():
    """No window is without the event, and the crops stand alone."""
    videos = [TrainVideo(f"film {i}", 90.0, store_path(i, 90.0), None, (TrainQuestion(f"event of {i}", ((30.0, 60.0),)),)) for i in range(2)]
    curriculum = make(Corpus(videos, open_store=MemoryStore), "2", absent=0.5)
    for index in range(8):
        example = curriculum.example(index)
        assert example["window_mask"].sum() in (2, 3) and not example["frames"][3:].any()
        assert curriculum.answer == ((0, int(example["window_mask"].sum()) - 1) if index % 2 == 0 else None)


def test_events_longer_than_a_window_are_cropped_inside():
    video = TrainVideo("film", 1500.0, store_path(1, 1500.0), None, (TrainQuestion("a long one", ((300.0, 500.0),)),))
    curriculum = make(Corpus([video], open_store=MemoryStore), "2")
    for index in range(10):
        _, starts = windows(curriculum.example(index))
        first, last = curriculum.answer
        assert all(start >= 300 and start + SPAN <= 500 for start in starts[first : last + 1])


def test_what_cannot_be_is_told():
    corpus = listed()
    with pytest.raises(ConfigError, match=r"stages\.2\.examples\.zooms: must be at most the 12 windows"):
        make(corpus, "2", examples={"zooms": (1, 13)})
    with pytest.raises(ConfigError, match=r"examples\.crops: must be the fewest and the most"):
        make(corpus, "2", examples={"crops": (3, 2)})
    given = config()
    nested = dataclasses.replace(given.grounding.level("sparse"), name="nested", kind="nested", span_s=120.0, stride_s=120.0)
    given = dataclasses.replace(given, grounding=dataclasses.replace(given.grounding, levels=(nested, *given.grounding.levels[1:])), train=type(given.train)())
    stage = dataclasses.replace(config().train.stages[2], level="nested")
    with pytest.raises(ConfigError, match="'crops' are for sparse levels, nested is nested"):
        Curriculum(given, stage, corpus, WORDS, 0)
