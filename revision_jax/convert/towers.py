"""What the transformers of SigLIP, CLIP and VideoLLaMA3's encoder have in common: the rules of their blocks, and their config.json.

All three name a block's parts alike (`encoder.layers.<i>.self_attn.q_proj`, ...); this project keeps them as `blocks_<i>/attention/q`, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from revision_jax.convert.plan import Ignore, Rule
from revision_jax.convert.transforms import PATCH_KERNEL, TRANSPOSE
from revision_jax.errors import UserError

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
EXTERNAL_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}

# Not weights: a buffer that old versions stored.
POSITION_IDS = (Ignore("*position_ids", "0, 1, 2, ..."),)


# ---------------------------------------------------------------------------------------------------------------------------- rules


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A linear layer with its bias."""
    return Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSE), Rule(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A LayerNorm."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def patch_embedding(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The convolution that makes a token of a patch, with its bias."""
    return Rule(f"{theirs}.weight", f"{ours}/kernel", PATCH_KERNEL), Rule(f"{theirs}.bias", f"{ours}/bias")


def mlp(theirs: str, ours: str) -> tuple[Rule, ...]:
    return *linear(f"{theirs}.fc1", f"{ours}/fc1"), *linear(f"{theirs}.fc2", f"{ours}/fc2")


def blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    """All blocks of a tower; `theirs` ends in a dot or is empty, `ours` is the tower's path."""
    layer, block = f"{theirs}encoder.layers.{{i}}", f"{ours}/blocks_{{i}}"
    rules = [*norm(f"{layer}.layer_norm1", f"{block}/norm1"), *norm(f"{layer}.layer_norm2", f"{block}/norm2"), *mlp(f"{layer}.mlp", f"{block}/mlp")]
    for name, part in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
        rules += linear(f"{layer}.self_attn.{part}", f"{block}/attention/{name}")
    return tuple(rules)


# --------------------------------------------------------------------------------------------------------------------------- config


class Settings:
    """A config.json's values, read one by one; what is wrong is collected and told at once by `finish`."""

    def __init__(self, values: Any, where: str, problems: list[str] | None = None):
        self.where = where
        self.problems: list[str] = [] if problems is None else problems
        if not isinstance(values, Mapping):
            self.problems.append(f"{where} must be an object, is {values!r}")
        self.values = values if isinstance(values, Mapping) else {}

    def part(self, name: str) -> Settings:
        """The settings of one sub-model."""
        return Settings(self.values.get(name), f"{self.where}.{name}" if self.where else name, self.problems)

    def _named(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def kind(self, *allowed: str) -> None:
        """Checks model_type."""
        if self.values.get("model_type") not in allowed:
            self.problems.append(f"{self._named('model_type')} is {self.values.get('model_type')!r}, must be {' or '.join(allowed)}")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number; `default` where the file does not speak of it (transformers leaves out what its config class has as a default)."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]  # image_size and patch_size may be pairs
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            self.problems.append(f"{self._named(name)} must be a positive whole number, is {value!r}")
            return 1
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            self.problems.append(f"{self._named(name)} must be a positive number, is {value!r}")
            return default
        return float(value)

    def activation(self, name: str, default: str) -> str:
        value = self.values.get(name, default)
        if value not in ACTIVATIONS:
            self.problems.append(f"{self._named(name)} is {value!r}, known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS.get(value, ACTIVATIONS[default])

    def demand(self, name: str, *allowed: Any, default: Any = None) -> None:
        """Checks that a value is one of those that this project implements."""
        value = self.values.get(name, default)
        if value not in allowed:
            self.problems.append(f"{self._named(name)} is {value!r}, must be {' or '.join(map(repr, allowed))}")

    def finish(self, path: Any) -> None:
        """Raises UserError with every finding, if there is one."""
        if self.problems:
            raise UserError(f"{path}: {'; '.join(self.problems)}")
