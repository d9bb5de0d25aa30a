"""Every program that answering with a model needs, as (kind, level, shapes): a finite list, known from its config before there is any video.

What a film can change is the grid that its frames are seen at (`VisionConfig.grids`), and so how many tokens a frame has. All else is a size of the config:
the film's length and the number of questions change how often a program is called, and whether its last one has the rows of `LevelConfig.rest`.
"""

from __future__ import annotations

import itertools
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


def program_shapes(functions: LevelFunctions, state: dict, *, largest: bool = False) -> Iterator[ProgramShape]:
    """The programs of `Grounder.ground`, each in the order in which a search comes to it. Levels that are no part of a search need none.

    state: arrays or `jax.ShapeDtypeStruct` (`revision.abstract_state`). largest: leave out those with fewer rows or shorter questions, which need less.
    The image encoders' programs are `extraction.patches.encoder_programs`.
    """
    grounding = functions.config.grounding
    ids = _ints(1, grounding.query_len)
    yield ProgramShape("question", "", (ids, _bools(*ids.shape)))
    asked = jax.tree.map(lambda x: _like(x, x.shape[1:]), jax.eval_shape(functions.question, state, ids, _bools(*ids.shape)))
    for level in grounding.levels:
        if level.searched:
            rows = level.batches[:1] if largest else level.batches
            asks = [[_ask(asked, count, length) for length in sorted(grounding.prompt_lengths, reverse=True)[: 1 if largest else None]] for count in rows]
            yield from {"sparse": _sparse, "nested": _nested, "dense": _dense, "patch": _patch}[level.kind](functions, state, level, asked, asks)


Asks = list[list[dict]]  # batches of questions: of each number of rows, those of each length


def _sparse(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict, asks: Asks) -> Iterator[ProgramShape]:
    shape, mask = (level.windows, level.frames), _bools(asked["tokens"].shape[0])
    programs = [
        ProgramShape("window tokens", level.name, (frames["frame"], frames.get("tokens"), _bools(*shape), asked["tokens"], mask, asked["vectors"]))
        for frames in _frames(functions, shape)
    ]
    yield from programs
    yield from _window_answers(functions, state, level, asks, programs[0])


def _nested(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict, asks: Asks) -> Iterator[ProgramShape]:
    base = functions.config.grounding.below(level.name)
    shape = (level.tokens, base.run_length(level))
    summaries, seen = _floats(*shape, base.adapter.encoder), _floats(*shape, asked["vectors"].shape[0])
    program = ProgramShape("run tokens", level.name, (summaries, _bools(*shape), asked["tokens"], _bools(asked["tokens"].shape[0]), seen))
    yield program
    yield from _window_answers(functions, state, level, asks, program)


def _window_answers(functions: LevelFunctions, state: dict, level: LevelConfig, asks: Asks, tokens: ProgramShape) -> Iterator[ProgramShape]:
    made = jax.eval_shape(lambda *args: functions.by_kind[tokens.kind](level, *args), state, *tokens.arrays)
    for ask in itertools.chain(*asks):
        token, seen = (_like(x, (len(ask["mask"]), level.tokens, *x.shape[1:])) for x in (made.token, made.level))
        yield ProgramShape("window answer", level.name, (token, seen, _bools(len(ask["mask"]), level.tokens), ask))


def _dense(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict, asks: Asks) -> Iterator[ProgramShape]:
    for of_rows in asks:
        ask = of_rows[0]
        shape = (len(ask["mask"]), level.tokens)
        query = (ask["tokens"], ask["mask"]) if level.adapter.reads_query else (None, None)
        for frames in _frames(functions, shape):
            prefix = ProgramShape("frame prefix", level.name, (frames, _bools(*shape), *query))
            yield prefix
            entries = jax.eval_shape(lambda *args: functions.frame_prefix(level, *args), state, *prefix.arrays)
            yield from (ProgramShape("frame answer", level.name, (entries, ask)) for ask in of_rows)


def _patch(functions: LevelFunctions, state: dict, level: LevelConfig, asked: dict, asks: Asks) -> Iterator[ProgramShape]:
    config = functions.config
    vision = config.encoder(config.patch_encoder)
    for count, ask in itertools.product(token_counts(vision), itertools.chain(*asks)):
        shape = (len(ask["mask"]), level.tokens)
        tokens, change = _floats(*shape, count, vision.output, dtype=FEATURES), _floats(*shape, count, dtype=FEATURES)
        yield ProgramShape("patch answer", level.name, (tokens, change, _bools(*shape), ask))


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


def _ask(asked: dict, rows: int, length: int) -> dict:
    """A batch of questions, see `LevelFunctions`."""
    many = {name: x and _like(x, (rows, *x.shape)) for name, x in asked.items()}
    return {**many, "mask": _bools(rows, asked["tokens"].shape[0]), "after_ids": _ints(rows, length), "after_mask": _bools(rows, length)}


def _like(x: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _floats(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _bools(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bool_)
