"""VTimeLLM's `mm_projector.bin`: one linear layer from CLIP's width to the decoder's. ReVisionLLM's dense level goes on with it, frozen.

    model.mm_projector.{weight, bias}  ->  adapter/<level>/mm_projector/{weight, bias}

`level` may name several, with commas: each gets a copy. What the names carry in front ("base_model.", "model.", any number of times) does not matter.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from revision_jax import paths
from revision_jax.config import AdapterConfig, ConfigError, ExperimentConfig, LevelConfig
from revision_jax.convert.formats import Format
from revision_jax.convert.plan import Rule
from revision_jax.convert.source import Source
from revision_jax.errors import UserError

PREFIX = "model."  # as released
LINEAR = ("mm_projector.weight", "mm_projector.bias")
_FRONT = re.compile(r"^(?:base_model\.|model\.)*")


def under(prefix: str) -> Callable[[Source], Source]:
    """A view of a source in which every name begins with `prefix`, whatever of "base_model." and "model." it begins with."""
    return lambda source: source.renamed(lambda name: prefix + _FRONT.sub("", name))


def levels_of(config: ExperimentConfig, names: str) -> tuple[LevelConfig, ...]:
    """The levels that `names` (joined by commas) means. Raises UserError for none and for unknown ones."""
    wanted = [name for name in names.split(",") if name]
    if not wanted:
        raise UserError(f"level: an adapter belongs to one; the levels are {', '.join(level.name for level in config.grounding.levels) or 'none'}")
    try:
        return tuple(config.grounding.level(name) for name in wanted)
    except ConfigError as error:
        raise UserError(f"level: {error}") from error


@functools.lru_cache(maxsize=8)
def leaves_of(config: ExperimentConfig, names: str) -> Mapping[str, Any]:
    """The adapters of levels (jax.ShapeDtypeStruct by full path)."""
    import jax

    from revision_jax.models.revision import init_adapter

    trees: dict[AdapterConfig, Any] = {}  # levels often have alike ones, and tracing one takes a while
    for one in levels_of(config, names):
        if one.adapter not in trees:
            trees[one.adapter] = jax.eval_shape(lambda one=one: init_adapter(one, config, jax.random.key(0)))
    return paths.flatten({f"adapter/{one.name}": trees[one.adapter] for one in levels_of(config, names)})


def with_adapters(config: ExperimentConfig, levels: Sequence[LevelConfig], fields: Callable[[LevelConfig], dict]) -> ExperimentConfig:
    """The config with the adapters of some levels changed: `fields(level)` are `AdapterConfig`'s. Raises UserError where they do not fit."""
    names = {level.name for level in levels}

    def changed(level: LevelConfig) -> LevelConfig:
        return dataclasses.replace(level, adapter=dataclasses.replace(level.adapter, **fields(level))) if level.name in names else level

    try:
        grounding = dataclasses.replace(config.grounding, levels=tuple(map(changed, config.grounding.levels)))
        return dataclasses.replace(config, grounding=grounding)
    except ConfigError as error:
        raise UserError(str(error)) from error


def linear_width(source: Source, name: str) -> int:
    """Input width of a linear layer [out, in]. Raises UserError where the tensor is missing or no matrix."""
    info = source.tensors.get(name)
    if info is None or len(info.shape) != 2:
        raise UserError(f"{source.path}: {name} {'is missing' if info is None else f'has shape {info.shape}, a linear layer has two axes'}")
    return info.shape[1]


def _config(source: Source, base: ExperimentConfig, level: str) -> ExperimentConfig:
    levels = levels_of(base, level)
    wrong = [f"levels.{one.name}.adapter.kind: {one.adapter.kind!r} reads more than one linear layer" for one in levels if one.adapter.kind != "dense"]
    if wrong:
        raise UserError(f"{source.path}: {'; '.join(wrong)}")
    width = linear_width(under(PREFIX)(source), PREFIX + LINEAR[0])
    return with_adapters(base, levels, lambda one: {"width": width})


def _rules(config: ExperimentConfig, level: str) -> Sequence[Rule]:
    return [Rule(PREFIX + name, f"adapter/{one.name}/{name.replace('.', '/')}") for one in levels_of(config, level) for name in LINEAR]


FORMAT = Format(
    name="vtimellm",
    says="VTimeLLM's mm_projector.bin, for a dense level",
    detect=lambda source: set(under("")(source).tensors) == set(LINEAR),
    config=_config,
    rules=_rules,
    prefixes=lambda config, level: [f"adapter/{one.name}" for one in levels_of(config, level)],
    leaves=leaves_of,
    view=under(PREFIX),
    needs_level=True,
    writable=True,
    weights="mm_projector.bin",
)
