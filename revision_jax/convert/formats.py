"""The table of formats. A format is data: how it is known, which config it means, its rules; everything else is the same for all.

To add one, write `revision_jax/convert/<name>.py` with a `FORMAT = Format(...)` in it, and its line in MODULES.

Formats of one level (a LoRA, an adapter) fill `lora/<level>` or `adapter/<level>`; `level` is "" for all others. Every function gets it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from revision_jax import paths
from revision_jax.config import ExperimentConfig
from revision_jax.convert.plan import Ignore, Plan, Rule, export_plan, make_plan
from revision_jax.convert.source import Source
from revision_jax.errors import UserError

# Name -> "module:constant". In the order in which `detect` asks them: the more particular first.
MODULES: dict[str, str] = {
    "revision_jax": "revision_jax.convert.ours:FORMAT",
    "video_llama_3": "revision_jax.convert.video_llama_3:FORMAT",
    "videollama3": "revision_jax.convert.video_llama_3:OWN_FORMAT",
    "navit": "revision_jax.convert.navit:FORMAT",
    "siglip": "revision_jax.convert.siglip:FORMAT",
    "siglip_rope2d": "revision_jax.convert.siglip:ROPE2D",
    "clip": "revision_jax.convert.clip:FORMAT",
    "revisionllm": "revision_jax.convert.revisionllm:FORMAT",
    "vtimellm": "revision_jax.convert.vtimellm:FORMAT",
    "peft": "revision_jax.convert.peft:FORMAT",
    "llama": "revision_jax.convert.llama:LLAMA",
    "qwen2": "revision_jax.convert.llama:QWEN2",
}

WHOLE = ("video_llama_3", "videollama3")  # of these: models that answer by themselves, and are no part of one


def _none(*_: Any) -> tuple:
    return ()


def _as_it_is(source: Source) -> Source:
    return source


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    detect(source): whether this is it, told by its config.json ("model_type", "architectures") or, without one, by its tensors' names.
    config(source, base, level): `base` with the parts that this source describes put in (its decoder, its vision, ...). Raises UserError, all
        findings at once, for a config.json that cannot be used, or that contradicts what `base` must keep (a LoRA's base model).
    rules(config, level), ignores(config, level): see plan.py.
    prefixes(config, level): the subtrees of our state that it fills, such as ("params/decoder",).
    leaves(config, level): the leaves themselves, where they are not all that `abstract_state` has under the prefixes.
    external(config, level): the config.json (adapter_config.json) of an export; None for formats without one.
    special_tokens(config): tokens that the tokenizer must hold as one token each.
    view(source): the source under the names that the rules have, for formats whose names vary.
    """

    name: str
    says: str  # one line for --help
    detect: Callable[[Source], bool]
    config: Callable[[Source, ExperimentConfig, str], ExperimentConfig]
    rules: Callable[[ExperimentConfig, str], Sequence[Rule]]
    prefixes: Callable[[ExperimentConfig, str], Sequence[str]]
    ignores: Callable[[ExperimentConfig, str], Sequence[Ignore]] = _none
    external: Callable[[ExperimentConfig, str], dict] | None = None
    special_tokens: Callable[[ExperimentConfig], Sequence[str]] = field(default=_none)
    leaves: Callable[[ExperimentConfig, str], Mapping[str, Any]] | None = None
    needs_level: bool = False
    writable: bool = False
    weights: str = "model"  # stem of the exported files; "x.bin": one file of torch.save with that name
    config_name: str = "config.json"  # what their config is called
    view: Callable[[Source], Source] = _as_it_is

    def target(self, config: ExperimentConfig, level: str = "") -> Mapping[str, Any]:
        """Our leaves that it fills, by full path."""
        return target(config, self.prefixes(config, level)) if self.leaves is None else self.leaves(config, level)

    def plan(self, source: Source, config: ExperimentConfig, level: str = "", dtype: str | None = None) -> Plan:
        """The checked plan that fills this format's part of our state. Raises UserError."""
        return make_plan(self.rules(config, level), self.ignores(config, level), self.view(source), self.target(config, level), dtype)

    def export_plan(self, config: ExperimentConfig, level: str = "") -> Plan:
        """The way back. Raises UserError if the format is only read, or has no place for one of our leaves."""
        if not self.writable:
            raise UserError(f"target: {self.name} is only read, not written; written are {', '.join(name for name in MODULES if named(name).writable)}")
        return export_plan(self.rules(config, level), self.target(config, level))


def target(config: ExperimentConfig, prefixes: Sequence[str]) -> dict[str, Any]:
    """Our leaves (jax.ShapeDtypeStruct) at or below the prefixes, by full path."""
    return {name: leaf for name, leaf in _leaves(config).items() if any(paths.under(name, prefix) for prefix in prefixes)}


@functools.lru_cache(maxsize=4)
def _leaves(config: ExperimentConfig) -> Mapping[str, Any]:
    """All leaves of a config's state. Tracing a large model takes a second, and every part of it asks."""
    from revision_jax.models.revision import abstract_state

    return paths.flatten(abstract_state(config))


def named(name: str) -> Format:
    """The format called `name`; raises UserError with the known ones."""
    if name not in MODULES:
        raise UserError(f"source: {name!r} is not a known format; known are {', '.join(MODULES)}")
    module, constant = MODULES[name].split(":")
    return getattr(importlib.import_module(module), constant)


def detect(source: Source) -> Format:
    """The format of a source; raises UserError if no format, saying what the source says of itself."""
    for name in MODULES:
        if named(name).detect(source):
            return named(name)
    told = source.config.get("architectures") or source.config.get("model_type") or "nothing"
    raise UserError(f"{source.path}: not a checkpoint of a known format (its config names {told}); known are {', '.join(MODULES)}")
