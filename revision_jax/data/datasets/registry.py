"""The datasets by name. A builder is imported when it is asked for: TFDS takes a second or two."""

from __future__ import annotations

import importlib
from typing import Any

from revision_jax.errors import UserError

NAMES = {  # name -> (module, class)
    "mad": ("mad", "Mad"),
    "vidchapters": ("vidchapters", "VidChapters"),
    "msrvtt": ("msrvtt", "Msrvtt"),
    "charades_sta": ("charades_sta", "CharadesSta"),
    "activitynet_captions": ("activitynet_captions", "ActivitynetCaptions"),
    "qvhighlights": ("qvhighlights", "QvHighlights"),
    "ego4d_nlq": ("ego4d_nlq", "Ego4dNlq"),
    "extremewhenbench": ("extremewhenbench", "ExtremeWhenBench"),
    "jsonl": ("jsonl", "Jsonl"),
    "synthetic_world": ("synthetic_world", "SyntheticWorld"),
    "conversations": ("conversations", "Conversations"),
}
GROUNDING = tuple(name for name in NAMES if name != "conversations")


def builder(name: str) -> Any:
    """The builder class of a dataset. Raises UserError for a name that is none."""
    if name not in NAMES:
        raise UserError(f"dataset {name!r} is not one of {', '.join(NAMES)}")
    module, kind = NAMES[name]
    return getattr(importlib.import_module(f"revision_jax.data.datasets.{module}"), kind)
