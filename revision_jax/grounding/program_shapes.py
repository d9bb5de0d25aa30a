"""Every program that answering with a model needs, as (kind, level, shapes): a finite list, known from its config before there is any video.

What a film can change is the grid that its frames are seen at (`VisionConfig.grids`), and so how many tokens a frame has. All else is a size of the config:
length and number of questions change how often a program is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from revision_jax.config import LevelConfig, VisionConfig
from revision_jax.grounding.level_functions import LevelFunctions

FEATURES = jnp.float16  # of a feature store


@dataclass(frozen=True)
class ProgramShape:
    """One program. arrays: trees of `jax.ShapeDtypeStruct`, the arguments behind the state (`level_functions.level_state`)."""

    kind: str
    level: str  # "" where it belongs to none
    arrays: tuple


def program_shapes(functions: LevelFunctions, state: dict) -> Iterator[ProgramShape]:
    """The programs of `Grounder.ground`, each in the order in which a search comes to it. Levels that are no part of a search need none.

    state: arrays or `jax.ShapeDtypeStruct` (`revision.abstract_state`). The image encoders' programs are `extraction.patches.encoder_programs`.
    """
    grounding = functions.config.grounding
    ids = _ints(1, grounding.query_len)
    yield ProgramShape("question", "", (ids, _bools(*ids.shape)))
    asked = jax.tree.map(lambda x: _like(x, x.shape[1:]), jax.eval_shape(functions.question, state, ids, _bools(*ids.shape)))
    for level in grounding.levels:
        if level.searched:
            yield from {"sparse": _sparse, "nested": _nested, "dense": _dense, "patch": _patch}[level.kind](functions, state, level, asked)


def _sparse(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict) -> Iterator[ProgramShape]:
    shape, mask = (level.tokens, level.frames), _bools(asked["tokens"].shape[0])
    programs = [
        ProgramShape("window tokens", level.name, (frames["frame"], frames.get("tokens"), _bools(*shape), asked["tokens"], mask, asked["vectors"]))
        for frames in _frames(functions, shape)
    ]
    yield from programs
    yield _window_answer(functions, state, level, asked, programs[0])


def _nested(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict) -> Iterator[ProgramShape]:
    base = functions.config.grounding.below(level.name)
    shape = (level.tokens, base.run_length(level))
    summaries, seen = _floats(*shape, base.adapter.encoder), _floats(*shape, asked["vectors"].shape[0])
    program = ProgramShape("run tokens", level.name, (summaries, _bools(*shape), asked["tokens"], _bools(asked["tokens"].shape[0]), seen))
    yield program
    yield _window_answer(functions, state, level, asked, program)


def _window_answer(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict, tokens: ProgramShape) -> ProgramShape:
    made = jax.eval_shape(lambda *args: functions.by_kind[tokens.kind](level, *args), state, *tokens.arrays)
    token, seen = (_like(x, (level.batch, *x.shape)) for x in (made.token, made.level))
    return ProgramShape("window answer", level.name, (token, seen, _bools(level.batch, level.tokens), _ask(functions, level, asked)))


def _dense(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict) -> Iterator[ProgramShape]:
    shape, ask = (level.batch, level.tokens), _ask(functions, level, asked)
    query = (ask["tokens"], ask["mask"]) if level.adapter.reads_query else (None, None)
    for frames in _frames(functions, shape):
        prefix = ProgramShape("frame prefix", level.name, (frames, _bools(*shape), *query))
        yield prefix
        entries = jax.eval_shape(lambda *args: functions.frame_prefix(level, *args), state, *prefix.arrays)
        yield ProgramShape("frame answer", level.name, (entries, ask))


def _patch(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict) -> Iterator[ProgramShape]:
    config, shape = functions.config, (level.batch, level.tokens)
    vision = config.encoder(config.patch_encoder)
    for count in token_counts(vision):
        tokens, change = _floats(*shape, count, vision.output, dtype=FEATURES), _floats(*shape, count, dtype=FEATURES)
        yield ProgramShape("patch answer", level.name, (tokens, change, _bools(*shape), _ask(functions, level, asked)))


def token_counts(vision: VisionConfig) -> list[int]:
    """How many merged tokens a frame can have: one number for each grid, equal ones once."""
    return sorted({(rows // vision.merge) * (columns // vision.merge) for rows, columns in vision.grids})


def _frames(functions: LevelFunctions, shape: tuple[int, int]) -> list[dict]:
    """What a level reads of frames, for each number of tokens that a frame can have."""
    vision = functions.config.vision
    frame = _floats(*shape, vision.output, dtype=FEATURES)
    if not functions.needs_tokens:
        return [{"frame": frame}]
    return [{"frame": frame, "tokens": _floats(*shape, count, vision.output, dtype=FEATURES)} for count in token_counts(vision)]


def _ask(functions: LevelFunctions, level: LevelConfig, asked: dict) -> dict:
    """A batch of questions, see `LevelFunctions`."""
    many = {name: x and _like(x, (level.batch, *x.shape)) for name, x in asked.items()}
    after = (level.batch, functions.config.grounding.prompt_len)
    return {**many, "mask": _bools(level.batch, asked["tokens"].shape[0]), "after_ids": _ints(*after), "after_mask": _bools(*after)}


def _like(x: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _floats(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bools(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bool_)
