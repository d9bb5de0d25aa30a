"""Which of many videos is it? ReVisionLLM's retrieval level: a token a video, in the light of the question, and the decoder names one of a group.

A level of kind "video" stands beside those that search within a video. Groups are as large as the level's tokens, however many videos there are: within a
group the decoder compares, between groups its confidence and the videos' similarity do, as between the windows of a search (`search.rank_score`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from revision_jax.config import ConfigError, LevelConfig
from revision_jax.grounding.evidence import rank_score
from revision_jax.grounding.levels import Window
from revision_jax.grounding.programs import Programs, Question, WindowTokens
from revision_jax.grounding.prompt import parse_ids
from revision_jax.grounding.source import Source, gather

QUESTIONS = 64  # at a time: their tokens of a group are held on the device


@dataclass(frozen=True)
class RankedVideo:
    """A video's place in the list that was given, its score in [0, 1], and the probability that the decoder named it within its group."""

    video: int
    score: float
    named: float


def rank_videos(programs: Programs, sources: Sequence[Source], queries: Sequence[str | Question], level: LevelConfig | None = None) -> list[list[RankedVideo]]:
    """All videos for each question, best first. level: default the config's first of kind "video".

    Reads each video once, whatever the number of questions. Raises ConfigError for a model without such a level, UserError for a question that cannot be used.
    """
    level = level or next((level for level in programs.config.grounding.levels if level.kind == "video"), None)
    if level is None:
        raise ConfigError("grounding.levels: there is no level of kind 'video' to rank videos by")
    asked = [query if isinstance(query, Question) else programs.question(query) for query in queries]
    ranked: list[list[RankedVideo]] = [[] for _ in asked]
    for first in range(0, len(sources), level.tokens):
        group = sources[first : first + level.tokens]
        shown = _shown(programs, level, group)
        for begin in range(0, len(asked), QUESTIONS):
            some = asked[begin : begin + QUESTIONS]
            made = [programs.window_tokens(level, shown, question) for question in some]
            tokens = [WindowTokens(*(part[: len(group)] for part in one)) for one in made]
            decoded, _ = programs.window_answers(level, list(zip(tokens, some, strict=True)))
            for row, found in enumerate(ranked[begin : begin + QUESTIONS]):
                named = np.zeros(len(group))
                for j in range(decoded.length.shape[1]):
                    parsed = parse_ids(programs.tokenizer, level.prompt, decoded.tokens[row, j, : int(decoded.length[row, j])])
                    if parsed is not None and parsed != "absent" and parsed[1] < len(group):
                        named[parsed[1]] += math.exp(float(decoded.score[row, j]))
                for slot, share in enumerate(np.minimum(named, 1.0).tolist()):
                    score = rank_score(float(decoded.present[row]), share, float(tokens[row].level[slot, 0]), programs.config.grounding.retrieval)
                    found.append(RankedVideo(first + slot, score, share))
    return [sorted(found, key=lambda one: (-one.score, one.video)) for found in ranked]


def _shown(programs: Programs, level: LevelConfig, group: Sequence[Source]) -> list[tuple[dict, jax.Array]]:
    """The group's frames on the device: `level.frames` of each whole video."""
    parts = [gather(source, [Window(0.0, source.duration_s, source.duration_s)], level.frames, programs.names, level.sampling) for source in group]
    arrays = {name: np.concatenate([arrays[name] for arrays, _ in parts]) for name in programs.names}
    return programs.on_device(level, arrays, np.concatenate([valid for _, valid in parts]))
