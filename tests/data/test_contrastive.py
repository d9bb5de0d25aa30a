"""data/contrastive.py: by whatever strategy, nothing that is shown overlaps any moment of what is asked."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import NEGATIVES, ConfigError, ExampleConfig, StageConfig
from revision_jax.data import scores
from revision_jax.data.asking import TrainQuestion
from revision_jax.data.contrastive import Contrastive
from revision_jax.data.corpus import Corpus, TrainVideo
from revision_jax.data.scores import Scored
from revision_jax.data.targets import Targets
from revision_jax.data.windows import overlaps_any
from revision_jax.errors import UserError
from tests.data.films import listed
from tests.data.memory_store import MemoryStore, store_path

moment = st.tuples(st.floats(0, 580), st.floats(0.5, 60)).map(lambda pair: (pair[0], min(pair[0] + pair[1], 600.0)))
question = st.lists(moment, min_size=1, max_size=4).map(tuple)


def stage(name, **changes):
    return StageConfig(name="1a", level="dense", absent=1.0, **{"negatives": ((name, 1.0),), **changes})


def scored(path, corpus, checkpoint="tiny-1"):
    """A file that scores every 20 s, high where the film's number says."""
    rows = []
    for number, video in enumerate(corpus.videos):
        middles = np.arange(10.0, video.duration_s, 20.0)
        values = 0.5 + 0.4 * np.sin(middles / 50 + number)
        for one in video.questions:
            rows.append((video.video_id, one.query, Scored(np.stack([middles, values], 1).astype(np.float32), 0.8)))
    scores.write(path, checkpoint, rows)
    return ExampleConfig(scores=str(path), scored_by=checkpoint)


@pytest.mark.parametrize("name", NEGATIVES)
@settings(deadline=None, max_examples=25)
@given(films=st.lists(st.lists(question, min_size=1, max_size=3), min_size=1, max_size=3), span=st.sampled_from([20.0, 120.0]), seed=st.integers(0, 2**32))
def test_no_window_shows_anything_of_what_is_asked(tmp_path_factory, name, films, span, seed):
    asked = [tuple(TrainQuestion(f"event {q} of {f}", moments) for q, moments in enumerate(film)) for f, film in enumerate(films)]
    corpus = Corpus([TrainVideo(f"film {f}", 600.0, store_path(f, 600.0), None, own) for f, own in enumerate(asked)], open_store=MemoryStore)
    targets = Targets(corpus, "")
    examples = scored(tmp_path_factory.mktemp("scores") / "s", corpus) if name == "semi_hard" else ExampleConfig()
    contrastive = Contrastive(stage(name, examples=examples), targets)
    rng = np.random.default_rng(seed)
    for number in range(4):
        target = targets.at(number, rng)
        place = lambda other: int(min(max(other.moment[0] - 5, 0), 600 - span))
        try:
            film, asks, start = contrastive.window(rng, target, place(target), span, place)
        except UserError as error:
            assert "no window without what is asked" in str(error)
            continue
        video = int(film.store.data["frame"][0, 1])
        assert 0 <= start <= 600 - span
        assert not overlaps_any(corpus.questions(video).taken(asks), float(start), start + span)


def test_what_each_strategy_changes(tmp_path):
    corpus = listed()
    targets, rng = Targets(corpus, ""), np.random.default_rng(0)
    place = lambda target: max(int(target.moment[0]) - 10, 0)
    for name in NEGATIVES:
        examples = scored(tmp_path / "scores", corpus) if name == "semi_hard" else ExampleConfig()
        contrastive = Contrastive(stage(name, examples=examples), targets)
        others, questions = 0, set()
        for number in range(48):
            target = targets.at(number, rng)
            film, asks, start = contrastive.window(rng, target, place(target), 60.0, place)
            kept = asks.query == target.question.query
            assert kept == (name not in ("swap", "query_swap"))
            assert (film is target.film and start == place(target)) == (not kept)
            others += film is not target.film
            questions.add("never" if asks.query.startswith("never") else "own" if asks.query.endswith(f"film {target.video}") else "other")
        assert (others == 48) == (name == "cross_video") and (others == 0) == (name != "cross_video")
        assert questions == {"swap": {"never"}, "query_swap": {"own", "other"}}.get(name, {"own"})


def test_strategies_come_by_their_weights():
    targets, rng = Targets(listed(), ""), np.random.default_rng(0)
    contrastive = Contrastive(stage("", negatives=(("random", 1.0), ("cross_video", 3.0))), targets)
    place = lambda target: max(int(target.moment[0]) - 10, 0)
    drawn = [targets.at(number, rng) for number in range(400)]
    away = sum(contrastive.window(rng, target, place(target), 60.0, place)[0] is not target.film for target in drawn)
    assert 260 < away < 340


def test_semi_hard_windows_hold_what_scored_high_but_below_the_truth(tmp_path):
    corpus = listed(films=1)
    targets, rng = Targets(corpus, ""), np.random.default_rng(0)
    contrastive = Contrastive(stage("semi_hard", examples=scored(tmp_path / "scores", corpus)), targets)
    place = lambda target: int(target.moment[0])
    for number in range(24):
        target = targets.at(number, rng)
        _, _, start = contrastive.window(rng, target, place(target), 30.0, place)
        inside = [middle for middle in np.arange(10.0, 1500.0, 20.0) if start <= middle < start + 30]
        assert any(0.7 < 0.5 + 0.4 * np.sin(middle / 50) < 0.8 for middle in inside)


def test_scores_of_another_checkpoint_are_refused(tmp_path):
    corpus = listed()
    examples = scored(tmp_path / "scores", corpus)
    wrong = dataclasses.replace(examples, scored_by="tiny-2")
    with pytest.raises(UserError, match=r"these scores are of the checkpoint 'tiny-1', not 'tiny-2'"):
        Contrastive(stage("semi_hard", examples=wrong), Targets(corpus, ""))
    with pytest.raises(UserError, match="no such store"):
        Contrastive(stage("semi_hard", examples=dataclasses.replace(examples, scores=str(tmp_path / "none"))), Targets(corpus, ""))
    with pytest.raises(ConfigError, match="semi-hard negatives need a file of scores"):
        stage("semi_hard")
    found = scores.Scores(tmp_path / "scores", "tiny-1")
    assert found.of("film 0", "Event 0 of film 0.").own == pytest.approx(0.8) and found.of("film 0", "nothing") is None


def test_a_corpus_that_has_no_other_window_is_told():
    everywhere = TrainVideo("film", 600.0, store_path(1, 600.0), None, (TrainQuestion("a red ring", ((0.0, 600.0),)),))
    targets = Targets(Corpus([everywhere], open_store=MemoryStore), "")
    with pytest.raises(UserError, match=r"stages\.1a\.absent: the corpus has no window without what is asked"):
        Contrastive(stage("random"), targets).window(np.random.default_rng(0), targets.at(0, np.random.default_rng(0)), 0, 60.0, lambda target: 0)
