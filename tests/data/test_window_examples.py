"""data/window_examples.py as ReVisionLLM's stages have it; `test_curriculum.py` has the levels that are trained here."""

import numpy as np
import pytest

from revision_jax.data.asking import TrainQuestion
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.windows import overlaps_any
from revision_jax.errors import UserError
from tests.data.films import listed
from tests.data.memory_store import MemoryStore, store_path
from tests.data.revision_stages import make, source


@pytest.fixture(scope="module")
def corpus():
    return listed(rate=2.0)


def test_every_event_comes_with_one_window_around_it_and_one_without_it_from_the_same_film(corpus):
    curriculum = make(corpus, "1a")
    seen = []
    for index in range(0, 2 * curriculum.targets.epoch, 2):
        example = curriculum.example(index)
        asked, (first, last) = curriculum.question, curriculum.answer
        film, numbers = source(example["frames"], example["frame_mask"])
        start = numbers[0] / 2
        moment = min(m for m in asked.moments if start <= m[0] and m[1] <= start + 60)
        assert [first, last] == [min(round((t - start) / 60 * 100), 99) for t in moment]
        assert numbers.tolist() == np.linspace(numbers[0], min(numbers[0] + 120, 2999), 100, dtype=np.int32).tolist()
        np.testing.assert_allclose(example["times"], (numbers - numbers[0]) / 2, atol=1e-5)  # true ones
        other = curriculum.example(index + 1)
        assert curriculum.question.query == asked.query and curriculum.answer is None
        away, numbers = source(other["frames"], other["frame_mask"])
        assert away == film and not overlaps_any(asked.moments, numbers[0] / 2, numbers[0] / 2 + 60)
        seen.append((asked.query, moment))
    assert len(seen) == 24 and len(set(seen)) >= 23  # a film's two moments of one question may be shown together


def test_the_place_of_an_event_in_its_window_is_random(corpus):
    curriculum = make(corpus, "1a", absent=0.0)
    offsets = []
    for index in range(96):
        _, numbers = source(*(curriculum.example(index)[name] for name in ("frames", "frame_mask")))
        offsets.append(curriculum.question.moments[0][0] - numbers[0] / 2)
    assert min(offsets) < 8 and max(offsets) > 30 and len(set(offsets)) > 40


@pytest.mark.parametrize("task", ["1a", "1b"])
def test_events_longer_than_the_window_are_skipped_or_cut(task):
    questions = (TrainQuestion("a short one", ((500.0, 512.0),)), TrainQuestion("a long one", ((100.0, 190.0),)))
    corpus = Corpus([TrainVideo("film", 1500.0, store_path(1, 1500.0), None, questions)], open_store=MemoryStore)
    skipped, cut = (make(corpus, task, absent=0.0, examples={"long_events": kind}) for kind in ("skip", "cut"))
    assert skipped.targets.epoch == 1 and cut.targets.epoch == 2
    asked = set()
    for index in range(12):
        skipped.example(index)
        assert skipped.question.query == "a short one"
        example = cut.example(index)
        asked.add(cut.question.query)
        frames, mask = (example[name].reshape(-1, *example[name].shape[1 + (task == "1b") :]) for name in ("frames", "frame_mask"))
        _, numbers = source(frames, mask.reshape(-1))
        inside = [number for number in numbers if any(s <= number < e for s, e in cut.question.moments)]
        assert len(inside) >= 0.15 * len(numbers)
    assert asked == {"a short one", "a long one"}
    only_long = Corpus([TrainVideo("film", 1500.0, store_path(1, 1500.0), None, questions[1:])], open_store=MemoryStore)
    with pytest.raises(UserError, match=rf"stages\.{task}: no training video has a question with a moment of at most 60 s"):
        make(only_long, task)


def test_1b_may_have_windows_of_its_own(corpus):
    """VidChapters': 50 s, 100 frames, whatever the level's."""
    curriculum = make(corpus, "1b", examples={"span_s": 50.0, "frames": 40})
    for index in range(12):
        example = curriculum.example(index)
        assert example["frames"].shape[:2] == (1, 40)
        _, numbers = source(example["frames"][0], example["frame_mask"][0])
        assert numbers[-1] - numbers[0] in (99, 100)  # the end is included, but for the film's own
        assert curriculum.answer is (index % 2 == 0)
        start, taken = numbers[0] / 2, curriculum.question.moments
        if curriculum.answer:
            assert any(start <= begin and end <= start + 50 for begin, end in taken)
        else:
            assert not overlaps_any(taken, start, start + 50)


def test_1a_may_be_trained_with_more_frames_than_it_is_asked_with(corpus):
    example = make(corpus, "1a", examples={"frames": 120}).example(0)
    assert example["frames"].shape[0] == example["times"].shape[0] == 120
