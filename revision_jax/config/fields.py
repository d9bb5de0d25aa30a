"""Fields of frozen dataclasses: checks whose errors name the field, and JSON values into dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from revision_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A config field (or a command-line override) that cannot be used; the message is one line for the user."""


def _check(condition: bool, where: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {message}")


def _one_of(where: str, value: Any, choices: tuple) -> None:
    _check(value in choices, where, f"{value!r} is not one of {', '.join(map(str, choices))}")


def _positive(where: str, **values: float) -> None:
    for name, value in values.items():
        _check(value > 0, f"{where}.{name}", f"must be above 0, is {value}")


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turns JSON values into `kind` (a dataclass, tuple, literal or plain type); raises ConfigError naming the field."""
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # "X | None"
        return None if value is None else _build(next(choice for choice in typing.get_args(kind) if choice is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        _check(isinstance(value, dict), where, f"must be an object with {kind.__name__}'s fields, is {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        _check(not unknown, where, f"unknown field {', '.join(unknown)}; known are {', '.join(hints)}")
        return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is tuple:
        args = typing.get_args(kind)
        _check(isinstance(value, (list, tuple)), where, f"must be a list, is {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        _check(len(value) == len(args), where, f"must have {len(args)} items, has {len(value)}")
        return tuple(_build(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if origin is Literal:
        _one_of(where, value, typing.get_args(kind))
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _check(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), where, f"must be {kind.__name__}, is {value!r}")
    return value
