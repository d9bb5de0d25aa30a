"""The list of all programs: nothing is compiled beside it whatever the video, and nothing on it is left unused."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import jax
import numpy as np
import pytest

from revision_jax.config import ConfigError, LevelConfig, PrunerConfig
from revision_jax.extraction.patches import LINES, encoder_programs
from revision_jax.extraction.video import CHUNK
from revision_jax.grounding.level_functions import LevelFunctions, level_state
from revision_jax.grounding.program_shapes import program_shapes, token_counts
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.search import Searcher
from revision_jax.models.revision import abstract_state
from revision_jax.stored_programs import StoredProgram
from tests.grounding.conftest import random_film
from tests.grounding.test_patch_encoder import two_encoders
from tests.grounding.test_search import QUERIES, patches, spans

LENGTHS = (3.2, 30, 47.3, 60, 300, 601.5, 1799, 1800, 2400, 7200)  # seconds


@pytest.mark.slow
def test_a_session_over_ten_lengths_compiles_nothing_else(config, programs, monkeypatch, caplog):
    ready = set()
    for shape in program_shapes(programs.functions, programs.state):
        program = programs.stored(shape.kind, shape.level)
        program.prepare(level_state(programs.state, shape.level), *shape.arrays)
        ready.add(program)
    compiled, called, call = programs.compiled, set(), StoredProgram.__call__

    def noted(self, *args):
        called.add(self)
        return call(self, *args)

    monkeypatch.setattr(StoredProgram, "__call__", noted)
    searcher = Searcher(config, programs)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for seed, seconds in enumerate(LENGTHS):
            for found in searcher.search(random_film(seconds, seed), QUERIES[: 1 + seed % 2], refine=patches):
                assert found.moments
    assert [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()] == []
    assert programs.compiled == compiled
    assert called == ready


def test_which_rows_a_call_may_have():
    assert [LevelConfig(batch=batch, rest=rest).batches for batch, rest in ((8, 0), (4, 2), (1, 2), (2, 2))] == [(8,), (4, 2), (1,), (2,)]
    assert [LevelConfig(kind="sparse", frames=1, tokens=tokens).windows for tokens in (12, 32, 33, 100, 120)] == [12, 32, 17, 25, 30]
    with pytest.raises(ConfigError, match=r"levels\.dense\.rest: must not be negative, is -1"):
        LevelConfig(rest=-1)


def test_a_rest_has_calls_of_its_own_and_the_same_answers(config, state, tokenizer):
    whole, rests = (Programs(one, state, tokenizer) for one in (config, with_rests(config)))
    films = [random_film(seconds, seed) for seed, seconds in enumerate((60, 601.5, 2400))]
    found = [[Searcher(programs.config, programs).search(film, QUERIES, refine=patches) for film in films] for programs in (whole, rests)]
    for one, other in zip(itertools.chain(*found[0]), itertools.chain(*found[1]), strict=True):
        assert np.asarray(spans(one)) == pytest.approx(np.asarray(spans(other)), abs=1e-4)
    assert set(whole.compiled.values()) == {1}
    assert {count for (kind, name), count in rests.compiled.items() if "tokens" in kind or not name} == {1}
    assert max(rests.compiled.values()) == 2


def test_compiles_would_be_seen(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x + 17)(np.zeros(3, np.float32))
    assert any("ompil" in record.getMessage() for record in caplog.records)


def listed(config, tokenizer, *names: str) -> list[tuple[str, str]]:
    """(kind, level) of all programs of a config of these levels alone, of each the one with the most rows."""
    levels = tuple(level for level in config.grounding.levels if level.name in names)
    config = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels))
    return [(shape.kind, shape.level) for shape in program_shapes(LevelFunctions(config, tokenizer), abstract_state(config), largest=True)]


def with_rests(config, **changes):
    """Levels whose last call may have half of their batch's rows."""
    levels = tuple(dataclasses.replace(level, rest=level.batch // 2) for level in config.grounding.levels)
    return dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels, **changes))


def test_calls_of_a_rest_and_of_half_a_question(config, tokenizer):
    """[rows, positions of the question] of each program that reads one: batches of 2, 4 and 4, and room for long questions."""
    long = with_rests(config, prompt_len=64)
    shapes = list(program_shapes(LevelFunctions(long, tokenizer), abstract_state(long)))
    levels = ("nested", "sparse", "dense", "patch")
    asked = {name: [x.arrays[-1]["after_ids"].shape for x in shapes if x.level == name and "answer" in x.kind] for name in levels}
    both = lambda rows: [(rows, 64), (rows, 32)]
    assert asked == {"nested": both(1), "sparse": both(2) + both(1), "dense": both(4) + both(2), "patch": both(4) + both(2)}
    assert [x.arrays[1].shape for x in shapes if x.kind == "frame prefix"] == [(4, 40), (2, 40)]
    assert all("tokens" not in x.kind or sum(y.kind == x.kind for y in shapes) == 1 for x in shapes)


def test_a_program_for_each_number_of_tokens_that_a_frame_can_have(config, tokenizer):
    grids = ((4, 4), (2, 8), (8, 4))  # 4, 4 and 8 merged tokens
    wide = dataclasses.replace(config, vision=dataclasses.replace(config.vision, grids=grids))
    assert token_counts(wide.vision) == [4, 8]
    assert listed(wide, tokenizer, "nested", "sparse", "dense", "patch") == [
        ("question", ""), ("run tokens", "nested"), ("window answer", "nested"),
        ("window tokens", "sparse"), ("window tokens", "sparse"), ("window answer", "sparse"),
        ("frame prefix", "dense"), ("frame answer", "dense"), ("frame prefix", "dense"), ("frame answer", "dense"),
        ("patch answer", "patch"), ("patch answer", "patch"),
    ]  # fmt: skip
    sizes = [images.shape for _, (_, images) in encoder_programs(wide, abstract_state(wide)["params"])]
    assert sizes == [(CHUNK, 32, 32, 3), (CHUNK, 16, 64, 3), (CHUNK, 64, 32, 3)]
    # Without late similarity no level but the patches reads tokens: one program whatever the grid.
    pooled = dataclasses.replace(wide, decoder=dataclasses.replace(wide.decoder, signal=dataclasses.replace(wide.decoder.signal, similarity="pooled")))
    found = listed(pooled, tokenizer, "dense", "patch")
    assert found.count(("frame answer", "dense")) == 1 and found.count(("patch answer", "patch")) == 2


def test_the_patch_levels_own_encoder_has_a_program_and_its_tokens_a_shape(tokenizer):
    config = two_encoders()
    state = abstract_state(config)
    assert [program.name for program, _ in encoder_programs(config, state["params"])] == ["encode/vision", "encode/patch_vision"]
    (patch,) = (shape for shape in program_shapes(LevelFunctions(config, tokenizer), state) if shape.kind == "patch answer" )
    assert patch.arrays[0].shape == (4, 8, 16, 24)


def test_what_is_pruned_first_has_a_program_for_each_length_of_a_line(config):
    first = PrunerConfig(where="before_encoder")
    grids = ((4, 4), (2, 8), (8, 4))  # 16, 16 and 32 patches
    one = dataclasses.replace(config, pruner=first, vision=dataclasses.replace(config.vision, grids=grids))
    two = dataclasses.replace(two_encoders(), pruner=first)
    found = {name: encoder_programs(model, abstract_state(model)["params"]) for name, model in (("one", one), ("two", two))}
    assert [program.name for program, _ in found["one"]] == ["encode/vision"] * 3 + ["lines/vision"] * 2
    assert [arrays[1].shape for _, arrays in found["one"][3:]] == [(LINES, 16, 192), (LINES, 32, 192)]
    assert [program.name for program, _ in found["two"]] == ["encode/vision", "lines/patch_vision"]  # its own encoder sees no whole frame
    without = dataclasses.replace(one, grounding=dataclasses.replace(one.grounding, levels=one.grounding.levels[:3]))
    assert [program.name for program, _ in encoder_programs(without, abstract_state(without)["params"])] == ["encode/vision"] * 3


def test_a_baseline_is_no_part_of_the_search(config, tokenizer):
    flat = LevelConfig(name="flat", kind="dense", tokens=12, adapter=config.grounding.level("dense").adapter, baseline=True)
    more = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=(*config.grounding.levels, flat)))
    assert listed(more, tokenizer, "dense", "flat") == [("question", ""), ("frame prefix", "dense"), ("frame answer", "dense")]


@pytest.mark.parametrize("change", [{"query_len": 12}, {"prompt_len": 24}])
def test_identity(config, tokenizer, change):
    changed = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, **change))
    assert LevelFunctions(config, tokenizer).identity == LevelFunctions(config, tokenizer).identity
    assert LevelFunctions(changed, tokenizer).identity != LevelFunctions(config, tokenizer).identity
    trained = dataclasses.replace(config, name="other", data=dataclasses.replace(config.data, train_videos=3))
    assert LevelFunctions(trained, tokenizer).identity == LevelFunctions(config, tokenizer).identity
