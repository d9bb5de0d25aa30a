"""Temporal grounding in videos of minutes to many hours.

    from revision_jax import Grounder

Names are loaded when they are first used: importing this package imports no jax, so that data workers and `--help` stay light.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Answer": "revision_jax.grounding.answer",
    "Chat": "revision_jax.chat.chat",
    "EncodedVideo": "revision_jax.grounding.grounder",
    "Grounder": "revision_jax.grounding.grounder",
    "Moment": "revision_jax.grounding.answer",
    "UserError": "revision_jax.errors",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
