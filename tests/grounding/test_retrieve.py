"""The level of whole videos on random features: every video is ranked, each read once, and groups do not touch each other."""

from __future__ import annotations

import dataclasses

import pytest

from revision_jax.config import ConfigError, LevelConfig, PromptConfig
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.retrieve import rank_videos
from tests.grounding.conftest import noisy_state, random_film, small_config

QUERIES = ["a red ring", "a blue square"]


@pytest.fixture(scope="module")
def made(tokenizer):
    """(config, programs) of a model with one level of four videos a group."""
    config = small_config()
    sparse = config.grounding.level("sparse")
    words = PromptConfig(after="during which video can we see {query} ?", answer="in video {start} .", end="single")
    videos = LevelConfig(name="videos", kind="video", tokens=4, frames=6, sampling="linspace", batch=2, spans=3, adapter=sparse.adapter, prompt=words)
    config = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=(videos, *config.grounding.levels)))
    return config, Programs(config, noisy_state(config), tokenizer)


def test_every_video_is_ranked_for_every_question(made):
    _, programs = made
    films = [random_film(20 + 5 * number, seed=number) for number in range(10)]
    for ranked in rank_videos(programs, films, QUERIES):
        assert sorted(one.video for one in ranked) == list(range(10))
        scores = [one.score for one in ranked]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert programs.compiled["window tokens", "videos"] == programs.compiled["window answer", "videos"] == 1  # whatever the number of videos


def test_a_group_does_not_touch_another(made):
    _, programs = made
    films = [random_film(30, seed=number) for number in range(6)]
    both = rank_videos(programs, films, QUERIES)
    alone = rank_videos(programs, films[4:], QUERIES)  # the second group, which is not full
    for one, other in zip(both, alone, strict=True):
        second = {found.video: found for found in one if found.video >= 4}
        assert {found.video + 4: found.score for found in other} == pytest.approx({video: found.score for video, found in second.items()})


def test_it_is_no_part_of_the_search_within_a_video(made):
    from revision_jax.grounding.search import Searcher

    config, programs = made
    found = Searcher(config, programs).search(random_film(300), QUERIES[:1])[0]
    assert [trace.level.name for trace in found.levels] == ["sparse", "dense"]


def test_a_model_without_such_a_level_says_so(config, programs):
    with pytest.raises(ConfigError, match="no level of kind 'video'"):
        rank_videos(programs, [random_film(30)], QUERIES)

