import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from configs.tiny import get_config
from revision_jax.config import ConfigError, LevelConfig, StageConfig, override
from revision_jax.data.corpus import Corpus, TrainQuestion, TrainVideo
from revision_jax.data.curriculum import Curriculum, make_source
from revision_jax.data.pretraining import PretrainSource
from revision_jax.data.synthetic import language
from revision_jax.data.synthetic.world import split_seed
from revision_jax.data.tokenizer import build_word_tokenizer
from revision_jax.data.windows import overlaps_any, shows
from revision_jax.errors import UserError
from tests.data.memory_store import E, MemoryStore, N, store_path

LENGTH = 1500.0  # seconds of each film
MIX = (("random", 0.25), ("hard", 0.25), ("cross_video", 0.25), ("swap", 0.25))
PROMPTS = "during which frames can we see does happen in the video ? from to not present yes no ."


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer([PROMPTS, *language.vocabulary_sentences(0, 20)], 256, 512)


@pytest.fixture(scope="module")
def corpus():
    patch = [store_path(0, LENGTH, 4.0), store_path(1, LENGTH, 4.0), None]
    videos = [TrainVideo(f"film {i}", LENGTH, store_path(i, LENGTH), patch[i], (), split_seed("train", i)) for i in range(3)]
    return Corpus(videos, open_store=MemoryStore)


@pytest.fixture(scope="module")
def config():
    return override(get_config(), ["grounding.levels.sparse.tokens=20", "grounding.levels.nested.span_s=120", "grounding.levels.nested.stride_s=120"])


class Recorded(Curriculum):
    """Keeps the question and the answer in numbers, beside the arrays made of them."""

    def _text(self, question, answer, out):
        self.question, self.answer = question, answer
        super()._text(question, answer, out)


def make(config, corpus, tokenizer, name="1a", **changes):
    stage = next((stage for stage in config.train.stages if stage.name == name), StageConfig(name=name, level="nested"))
    return Recorded(config, dataclasses.replace(stage, **{"negatives": MIX, **changes}), corpus, tokenizer, 7)


def source(frames, mask):
    """(film, its first frame) of a window, and that the frames are consecutive where they are real; pads are zeros."""
    rows = frames[mask]
    assert len(np.unique(rows[:, 1])) == 1 and not frames[~mask].any()
    return int(rows[0, 1]), rows[:, 0].astype(int)


def script_moments(corpus, film, question):
    return corpus.questions(film).moments(question)


# --------------------------------------------------------------------------------------------------------------------------- purity


@pytest.mark.parametrize("name", ["1a", "1b", "2", "3"])
def test_an_example_is_a_function_of_seed_stage_and_index(config, corpus, tokenizer, name):
    first, fresh = make(config, corpus, tokenizer, name), Corpus(corpus.videos, open_store=MemoryStore)
    second = pickle.loads(pickle.dumps(make(config, fresh, tokenizer, name)))
    forwards = [first.example(index) for index in range(6)]
    backwards = [second.example(index) for index in reversed(range(6))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert not np.array_equal(forwards[0]["tokens"], forwards[2]["tokens"])
    other = Curriculum(config, first.stage, corpus, tokenizer, 8).example(0)
    renamed = Curriculum(config, dataclasses.replace(first.stage, name="other"), corpus, tokenizer, 7).example(0)
    for changed in (other, renamed):
        assert not np.array_equal(changed["tokens"], forwards[0]["tokens"])


def test_shapes_and_types_are_static(config, corpus, tokenizer):
    text = {"query_ids": (32,), "query_mask": (32,), "after_ids": (40,), "after_mask": (40,), "answer_ids": (8,), "answer_mask": (8,), "weight": ()}
    seen = {
        "1a": {"frames": (120, E), "tokens": (120, N, E), "frame_mask": (120,), "times": (120,)},
        "1b": {"frames": (1, 30, E), "tokens": (1, 30, N, E), "frame_mask": (1, 30), "times": (1, 30), "window_mask": (1,)},
        "2": {"frames": (20, 30, E), "tokens": (20, 30, N, E), "frame_mask": (20, 30), "times": (20, 30), "window_mask": (20,)},
        "3": {"tokens": (32, N, E), "change": (32, N), "frame_mask": (32,), "times": (32,)},
    }
    for name, shapes in seen.items():
        batch = make(config, corpus, tokenizer, name, batch=3).batch(2)
        assert {key: value.shape for key, value in batch.items()} == {key: (3, *shape) for key, shape in {**shapes, **text}.items()}
        for key, value in batch.items():
            kind = bool if key.endswith("mask") else np.int32 if key.endswith("ids") else np.float32
            assert value.dtype == kind, key
        single = make(config, corpus, tokenizer, name, batch=3).example(7)
        np.testing.assert_array_equal(batch["tokens"][1], single["tokens"])


# ---------------------------------------------------------------------------------------------------------------------------- dense


@pytest.mark.parametrize("cut", [0.0, 1.0])
def test_a_dense_answer_names_the_frames_that_show_the_first_moment(config, corpus, tokenizer, cut):
    curriculum = make(config, corpus, tokenizer, absent=0.0, cut=cut)
    whole = 0
    for index in range(60):
        example = curriculum.example(index)
        film, numbers = source(example["frames"], example["frame_mask"])
        np.testing.assert_array_equal(numbers, np.arange(numbers[0], numbers[0] + 120))
        np.testing.assert_allclose(example["times"], np.arange(120), atol=1e-4)
        start, moments = float(numbers[0]), script_moments(corpus, film, curriculum.question)
        assert moments == curriculum.question.moments
        shown = [moment for moment in moments if shows(moment, start, start + 120.0)]
        begin, end = shown[0]
        first, last = curriculum.answer
        visible = [slot for slot in range(120) if begin <= start + slot < end]
        assert [first, last] == [visible[0], visible[-1]]
        assert tokenizer.decode(example["answer_ids"].tolist()) == f"from {first} to {last} ."
        whole += any(start <= begin and end <= start + 120 for begin, end in moments)
    assert whole == 60 if cut == 0 else whole < 60


def test_no_contrastive_window_has_an_instant_of_what_is_asked(config, corpus, tokenizer):
    for negative in ("random", "hard", "cross_video", "swap"):
        curriculum = make(config, corpus, tokenizer, absent=1.0, negatives=((negative, 1.0),))
        kept = make(config, corpus, tokenizer, absent=0.0)
        same_window = 0
        for index in range(25):
            example = curriculum.example(index)
            film, numbers = source(example["frames"], example["frame_mask"])
            assert not overlaps_any(script_moments(corpus, film, curriculum.question), float(numbers[0]), numbers[0] + 120.0)
            assert curriculum.answer is None and tokenizer.decode(example["answer_ids"].tolist()) == "not present ."
            same_window += np.array_equal(kept.example(index)["frames"], example["frames"])
            if negative in ("random", "hard"):
                assert script_moments(corpus, film, curriculum.question)  # a window of the same film
        assert same_window > 20 if negative == "swap" else same_window == 0


def test_absent_examples_have_their_share_and_weight(config, corpus, tokenizer):
    curriculum = make(config, corpus, tokenizer, absent=0.25, absent_weight=0.5)
    weights = [float(curriculum.example(index)["weight"]) for index in range(40)]
    assert weights.count(0.5) == 10 and weights.count(1.0) == 30


def test_a_film_shorter_than_the_window_is_padded_with_nothing(config, tokenizer):
    videos = [TrainVideo(f"film {i}", 60.0, store_path(i, 60.0), None, (TrainQuestion(f"a red ring {i}", ((10.0, 20.5),)),)) for i in range(2)]
    curriculum = make(config, Corpus(videos, open_store=MemoryStore), tokenizer, absent=0.5, cut=0.5)
    for index in range(8):
        example = curriculum.example(index)
        np.testing.assert_array_equal(example["frame_mask"], np.arange(120) < 60)
        assert not example["frames"][60:].any() and not example["tokens"][60:].any()
        assert curriculum.answer in ((10, 20), None)
    group = make(config, Corpus(videos, open_store=MemoryStore), tokenizer, "2", absent=0.5).example(0)
    assert group["window_mask"].sum() == 1 and not group["frame_mask"][1:].any()


def test_slots_follow_the_true_rate(config, tokenizer):
    video = TrainVideo("film", 600.0, store_path(1, 600.0, 4.0), None, (TrainQuestion("a red ring", ((300.0, 330.0),)),))
    curriculum = make(config, Corpus([video], open_store=MemoryStore), tokenizer, absent=0.0)
    for index in range(10):
        example = curriculum.example(index)
        _, numbers = source(example["frames"], example["frame_mask"])
        assert (np.diff(numbers) == 4).all()
        times = numbers / 4
        visible = np.flatnonzero((times >= 300.0) & (times < 330.0))
        assert curriculum.answer == (visible[0], visible[-1])


# --------------------------------------------------------------------------------------------------------------- presence and groups


def test_presence_windows_hold_enough_of_the_event_or_none_of_it(config, corpus, tokenizer):
    curriculum = make(config, corpus, tokenizer, "1b")
    for index in range(60):
        example = curriculum.example(index)
        film, numbers = source(example["frames"][0], example["frame_mask"][0])
        assert (np.diff(numbers) == 2).all()
        start, moments = float(numbers[0]), script_moments(corpus, film, curriculum.question)
        assert curriculum.answer is (index % 2 == 0)
        if curriculum.answer:
            assert any(shows(moment, start, start + 60.0) for moment in moments)
        else:
            assert not overlaps_any(moments, start, start + 60.0)


@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_a_sparse_answer_names_the_windows_of_one_moment(config, corpus, tokenizer, crop):
    curriculum = make(config, corpus, tokenizer, "2", absent=0.5, crop=crop)
    sizes = set()
    for index in range(40):
        example = curriculum.example(index)
        size = int(example["window_mask"].sum())
        sizes.add(size)
        assert not example["frame_mask"][size:].any() and not example["frames"][size:].any()
        starts = []
        for window in range(size):
            film, numbers = source(example["frames"][window], example["frame_mask"][window])
            starts.append(float(numbers[0]))
        assert (np.diff(starts)[:-1] == 30).all() and 0 < np.diff(starts)[-1] <= 30 and starts[-1] + 60 <= LENGTH
        assert example["frame_mask"][:size].all()
        moments = script_moments(corpus, film, curriculum.question)
        if curriculum.answer is None:
            assert not overlaps_any(moments, starts[0], starts[-1] + 60.0)
            continue
        first, last = curriculum.answer
        runs = []
        for moment in moments:
            showing = [number for number, start in enumerate(starts) if shows(moment, start, start + 60.0)]
            if showing:
                runs.append((showing[0], showing[-1]))
        assert (first, last) in runs or not runs
    assert sizes == {20} if crop == 0 else len(sizes) > 4


def test_a_nested_group_is_filled_with_runs_of_other_films(config, corpus, tokenizer):
    curriculum = make(config, corpus, tokenizer, "nested", windows=60, crop=0.3, absent=0.3)  # 15 runs of 4 windows; a film has 13 (the last one cut)
    films, lengths = set(), set()
    for index in range(40):
        example = curriculum.example(index)
        assert example["frames"].shape == (60, 30, E)
        runs = {}
        for window in np.flatnonzero(example["window_mask"]):
            film, numbers = source(example["frames"][window], example["frame_mask"][window])
            runs.setdefault(window // 4, []).append((film, float(numbers[0])))
        films.add(len({film for parts in runs.values() for film, _ in parts}))
        lengths.add(len(runs))
        for parts in runs.values():
            assert len({film for film, _ in parts}) == 1 and (np.diff([start for _, start in parts])[:-1] == 30).all()
            answered = any(overlaps_any(script_moments(corpus, film, curriculum.question), start, start + 60.0) for film, start in parts)
            assert not (answered and curriculum.answer is None)
        if curriculum.answer is not None:
            first, last = curriculum.answer
            film, start = runs[first][0]
            _, end = runs[last][0]
            assert overlaps_any(script_moments(corpus, film, curriculum.question), start, end + 120.0)
    assert films >= {1, 2} and len(lengths) > 3


# ---------------------------------------------------------------------------------------------------------------------------- patch


def test_a_patch_window_lies_on_a_boundary_and_names_its_frames(config, corpus, tokenizer):
    curriculum = make(config, corpus, tokenizer, "3", absent=0.25)
    starts, ends = 0, 0
    for index in range(60):
        example = curriculum.example(index)
        film, numbers = source(example["tokens"][:, 0], example["frame_mask"])
        assert film in (0, 1) and (np.diff(numbers) == 1).all()
        np.testing.assert_array_equal(example["change"][:, 0], numbers)
        begin = numbers[0] / 4
        moments = script_moments(corpus, film, curriculum.question)
        if curriculum.answer is None:
            assert not overlaps_any(moments, begin, begin + 8.0)
            continue
        times = numbers / 4
        answers = {}
        for moment in moments:
            visible = np.flatnonzero((times >= moment[0] - 1e-6) & (times < moment[1] - 1e-6))
            if len(visible):
                answers[(int(visible[0]), int(visible[-1]))] = moment
        moment = answers[curriculum.answer]
        starts += begin < moment[0] < begin + 8
        ends += begin < moment[1] < begin + 8
        assert begin <= moment[0] < begin + 8 or begin < moment[1] <= begin + 8
    assert starts > 10 and ends > 10


# ------------------------------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_served_is_told(config, corpus, tokenizer):
    with pytest.raises(UserError, match="no training video has patch features"):
        make(config, Corpus(corpus.videos[2:], open_store=MemoryStore), tokenizer, "3")
    bare = TrainVideo("film", 600.0, store_path(1, 600.0), None, (TrainQuestion("a red ring", (), "absent"),))
    with pytest.raises(UserError, match="a question with a moment"):
        make(config, Corpus([bare], open_store=MemoryStore), tokenizer)
    with pytest.raises(ConfigError, match="multiple of 4"):
        make(config, corpus, tokenizer, "nested", windows=10)
    coarse = dataclasses.replace(corpus.videos[0], patch_store=store_path(0, LENGTH, 2.0))
    with pytest.raises(ConfigError, match=r"4\.0 a second; the patch features have 2\.0"):
        make(config, Corpus([coarse], open_store=MemoryStore), tokenizer, "3").example(0)
    everywhere = TrainVideo("film", 600.0, store_path(1, 600.0), None, (TrainQuestion("a red ring", ((0.0, 600.0),)),))
    with pytest.raises(UserError, match="no window without"):
        make(config, Corpus([everywhere], open_store=MemoryStore), tokenizer, absent=1.0).example(0)
    beyond = TrainVideo("film", 600.0, store_path(1, 600.0), None, (TrainQuestion("a red ring", ((700.0, 800.0),)),))
    with pytest.raises(UserError, match="beyond the end"):
        make(config, Corpus([beyond], open_store=MemoryStore), tokenizer).example(0)
    nested = dataclasses.replace(config.grounding, levels=(LevelConfig(name="nested", kind="nested"),))
    lonely = dataclasses.replace(config, grounding=nested, train=dataclasses.replace(config.train, stages=()))
    with pytest.raises(ConfigError, match="needs a sparse level"):
        make(lonely, corpus, tokenizer, "nested")


def test_frame_vectors_alone_where_the_config_compares_those(config, corpus, tokenizer):
    pooled = override(config, ["decoder.signal.similarity=pooled"])
    assert make(pooled, corpus, tokenizer).example(0)["tokens"].shape == (120, 0, E)
    assert make(pooled, corpus, tokenizer, "2").example(0)["tokens"].shape == (20, 30, 0, E)


def test_make_source_chooses_by_task(config, corpus, tokenizer):
    assert isinstance(make_source(config, StageConfig(name="p", task="pretrain"), None, tokenizer, 0), PretrainSource)
    assert isinstance(make_source(config, config.train.stages[-1], corpus, tokenizer, 0), Curriculum)
    with pytest.raises(UserError, match="needs a corpus"):
        make_source(config, config.train.stages[-1], None, tokenizer, 0)


def test_this_room_imports_no_jax():
    files = list(Path(__file__).parents[2].joinpath("revision_jax/data").rglob("*.py"))
    assert len(files) > 10
    for file in files:
        assert not re.search(r"^\s*(import|from) (jax|flax)\b", file.read_text(), re.MULTILINE), file
