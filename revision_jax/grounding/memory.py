"""Answering within a limit of device memory: how weights are held, how many rows a level's calls have, and what is left for prefixes.

    limit  =  weights  +  the largest program  +  prefix cache

The weights and the programs' arguments, results and temporaries are counted before any weight is read, the last by the compiler. A level's batch is the
config's or a half, a quarter, .. of it, so that the list of possible programs stays finite; the largest that leaves the prefix cache the config's budget, or,
where none does, as much as calls of one row leave. What is left in the end is the cache's. Batches change what is computed together, not the answers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from revision_jax.config import ExperimentConfig
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from revision_jax.extraction.patches import encoder_programs
from revision_jax.grounding.level_functions import LevelFunctions, level_state
from revision_jax.grounding.program_shapes import program_shapes
from revision_jax.models.decoder import split_layers
from revision_jax.models.quantize import quantize_state
from revision_jax.models.revision import abstract_state
from revision_jax.stored_programs import StoredProgram, stored_json

WEIGHTS = ("float32", "bfloat16", "int8")  # how a model's weights can be held
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
BytesOf = Callable[[str, int], int]  # of a level ("": of none) and its batch


@dataclass(frozen=True)
class Arrangement:
    """What was chosen: rows of each level's calls, bytes of the prefix cache."""

    batches: dict[str, int]
    cache: int


def parse_bytes(name: str, text: str) -> int:
    """A number of bytes such as 24GB, 22.5 GiB or 8000000000. Raises UserError that begins with the option's name."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", text.upper())
    if not found or found[2] not in (*UNITS, "B"):
        raise UserError(f"{name}: {text!r} is no amount of memory; write it as 24GB, 22.5GiB or a number of bytes")
    return int(float(found[1]) * UNITS.get(found[2], 1))


def stored_dtype(config: ExperimentConfig, weights: str | None = None) -> str:
    """The dtype of a model's floating weights, those that `weights` = "int8" quantises among them before. Raises UserError for another name."""
    if weights not in (None, *WEIGHTS):
        raise UserError(f"--weights: {weights!r} is not one of {', '.join(WEIGHTS)}")
    if weights in (None, "int8"):
        return "bfloat16" if config.decoder.dtype == "bfloat16" else "float32"
    return weights


def held_state(config: ExperimentConfig, weights: str | None = None) -> Any:
    """The state as a `Grounder` holds it, abstract: the decoder's layers apart."""
    dtype = jnp.dtype(stored_dtype(config, weights))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), abstract_state(config))
    state = jax.eval_shape(quantize_state, state) if weights == "int8" else state
    return {**state, "params": {**state["params"], "decoder": jax.eval_shape(split_layers, state["params"]["decoder"])}}


def size(tree: Any) -> int:
    """Bytes of arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def halvings(batch: int) -> tuple[int, ...]:
    """The batches that may be chosen in place of the config's, from it down to 1."""
    return (batch, *halvings(batch // 2)) if batch > 1 else (1,)


# ---------------------------------------------------------------------------------------------------------------------------- choice


def choose(limit: int, weights: int, cache: int, batches: Mapping[str, Sequence[int]], bytes_of: BytesOf) -> Arrangement | None:
    """The arrangement within `limit` bytes; None where calls of the fewest rows do not fit beside the weights.

    cache: bytes that the config gives to prefixes. batches: of each level those to choose from, largest first. bytes_of: what a level's largest program
    needs beside the weights, asked for as few batches as will do.
    """

    def largest(room: int) -> dict[str, int | None]:
        return {level: next((rows for rows in sizes if bytes_of(level, rows) <= room), None) for level, sizes in batches.items()}

    chosen = largest(limit - weights - cache)
    if None in chosen.values():
        least = smallest(batches, bytes_of)
        if weights + least > limit:
            return None
        chosen = largest(least)
    most = max(bytes_of(level, rows) for level, rows in chosen.items())
    return Arrangement(chosen, limit - weights - most)


def smallest(batches: Mapping[str, Sequence[int]], bytes_of: BytesOf) -> int:
    """Bytes beside the weights without which nothing is answered: the largest program where every level's calls have the fewest rows."""
    return max(bytes_of(level, sizes[-1]) for level, sizes in batches.items())


def fitted(config: ExperimentConfig, tokenizer: Tokenizer, weights: str | None, limit: int) -> ExperimentConfig:
    """The config with batches and a prefix cache that keep answering within `limit` bytes of device memory.

    Raises UserError that says how much the smallest arrangement takes, and about how much with smaller weights.
    """
    levels = [level for level in config.grounding.levels if level.searched]
    batches = {"": (1,), **{level.name: halvings(level.batch) for level in levels}}
    bytes_of = functools.partial(measured, config, tokenizer, weights)
    taken = size(held_state(config, weights))
    found = None if taken > limit else choose(limit, taken, config.grounding.prefix_cache_mb << 20, batches, bytes_of)
    if found is None:
        raise UserError(_too_little(config, tokenizer, weights, limit, batches))
    chosen = tuple(dataclasses.replace(level, batch=found.batches.get(level.name, level.batch)) for level in config.grounding.levels)
    return dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=chosen, prefix_cache_mb=found.cache >> 20))


def _too_little(config: ExperimentConfig, tokenizer: Tokenizer, weights: str | None, limit: int, batches: Mapping[str, Sequence[int]]) -> str:
    held, own = weights or stored_dtype(config), size(held_state(config, weights))
    least = smallest(batches, functools.partial(measured, config, tokenizer, weights))
    said = f"--memory-limit: {gigabytes(limit)} is too little, the smallest arrangement takes {gigabytes(own + least)}"
    others = [(name, size(held_state(config, name))) for name in WEIGHTS if name != held]
    told = " or ".join(f"{gigabytes(taken + least)} with --weights {name}" for name, taken in others if taken < own)  # whose programs may differ a little
    return f"{said} ({gigabytes(own)} of them weights as {held}){told and f'; about {told}'}"


def gigabytes(count: int) -> str:
    """Rounded up, so that what is said to be enough is."""
    return f"{-(-count // 10**6) / 1000:.3f} GB"


# ------------------------------------------------------------------------------------------------------------------------- measuring


@functools.lru_cache(maxsize=256)
def measured(config: ExperimentConfig, tokenizer: Tokenizer, weights: str | None, level: str, batch: int) -> int:
    """Bytes beside the weights that the largest program of a level with calls of `batch` rows needs; of "" those that belong to no level, the image encoders'
    among them. Compiled once and remembered on the disk (`stored_programs`)."""
    levels = tuple(dataclasses.replace(one, batch=batch) if one.name == level else one for one in config.grounding.levels)
    config = dataclasses.replace(config, grounding=dataclasses.replace(config.grounding, levels=levels))
    functions = LevelFunctions(config, tokenizer)
    return stored_json(f"bytes/{level}", f"{functions.identity}{weights}{jax.devices()[0].device_kind}", lambda: _compiled_bytes(functions, weights, level))


def _compiled_bytes(functions: LevelFunctions, weights: str | None, level: str) -> int:
    config, state = functions.config, held_state(functions.config, weights)
    found = []
    for shape in program_shapes(functions, state, largest=True):
        if shape.level == level:
            function = functions.by_kind[shape.kind]
            bound = functools.partial(function, config.grounding.level(level)) if level else function
            found.append(needs(StoredProgram(bound, f"{shape.kind}/{level}", functions.identity), level_state(state, level), shape.arrays))
    if not level:
        found += [needs(program, params, tuple(arrays)) for program, (params, *arrays) in encoder_programs(config, state["params"])]
    return max(found)


def needs(program: StoredProgram, weights: Any, arrays: tuple) -> int:
    """Bytes of a program's call beside its weights. What it reads and makes may be there twice: that of the call before is dropped when this one is done."""
    memory = program.prepare(weights, *arrays).memory_analysis()
    return 2 * (size(arrays) + memory.output_size_in_bytes) + memory.temp_size_in_bytes
