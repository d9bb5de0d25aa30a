"""What `launch.bench tokens` counts, against counts by hand."""

from __future__ import annotations

import dataclasses

import pytest

from configs.revisionllm_7b_mad import get_config
from launch.benches import tokens as bench
from revision_jax.config import TrainConfig
from revision_jax.grounding import levels as places


@pytest.fixture(scope="module")
def asked():
    """A model with one level, its frames, and a film of ten minutes."""
    config = bench.small(get_config())
    dense = config.grounding.level("dense")
    config = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=(dense,)), train=TrainConfig())
    programs, source = bench.model(config, 600.0)
    one = bench.asked(programs, source, 1)
    return programs, source, one, bench.asked(programs, source, 3)


def test_every_window_is_seen_once_and_asked_once_a_question(asked):
    programs, source, one, three = asked
    level = programs.config.grounding.level("dense")
    windows = len(places.windows(0.0, source.duration_s, level.span_s, level.stride_s))
    before, question = len(programs.functions.before["dense"]), int(programs.question(f"{bench.QUERY} 0").after["dense"][1].sum())
    seen = windows * (before + level.tokens)
    answers = one - seen - windows * question
    # From, two or three digits, to, two or three digits, period; spans that are not there have no tokens.
    assert windows * 7 <= answers <= windows * level.spans * 9
    assert three - seen > 2.5 * (one - seen)  # the film itself was there already


def test_the_released_procedure_by_hand(asked):
    config = bench.small(get_config())
    programs, _ = bench.model(config, 600.0)
    around = {name: len(programs.functions.before[name]) + int(programs.question(bench.QUERY).after[name][1].sum()) for name in ("dense", "sparse-100")}
    # 36,000 features: 115 dense windows; 287 sparse ones in groups of 25, 50, 100 and of 8, 16, 33. Answers: From 010 to 011. and From 10 to 11.
    dense, sparse = 115 * (around["dense"] + 250 + 9), (12 + 6 + 3) * (around["sparse-100"] + 100 + 8) + (36 + 18 + 9) * (around["sparse-100"] + 33 + 7)
    assert bench.released(programs, 7200.0, 5.0) == dense + sparse
