"""A user's own data: train.jsonl, validation.jsonl and test.jsonl, a JSON object a line.

    {"video_id": "holiday", "duration_s": 5400.0, "query": "the dog jumps into the lake", "moments": [[61.5, 70.0]]}

    video_id, duration_s   the video's name (of its file and its feature store) and length in seconds
    query                  what to look for
    moments                [[start, end], ...] in seconds; [] says that it does not happen
    query_id               optional, unique within the file; default: the line's number
    kind                   optional: one, several, absent, near_miss; default: by the number of moments
    category               optional, any text
    source_id, offset_s    optional: the longer recording that the video was cut from, and where it begins there
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_lines
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation, Problem

REQUIRED = ("video_id", "duration_s", "query", "moments")
OPTIONAL = ("query_id", "kind", "category", "source_id", "offset_s")


@dataclass(frozen=True)
class JsonlRules(Rules):
    """Nothing is mended, nothing is left out, unless asked for."""

    splits: tuple[str, ...] = ("train",)


class Jsonl(GroundingBuilder):
    """A user's own annotations."""

    name = "jsonl"
    ASKED = "yourself: docs/data.md says how to write it"
    RULES: ClassVar = {"default": JsonlRules(), "all": JsonlRules(splits=("train", "validation", "test"))}
    FILES = tuple(Wanted(split, (f"{split}.jsonl",), splits=(split,)) for split in ("train", "validation", "test"))

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: JsonlRules) -> Iterator[Row]:
        return each(json_lines(files[split]), _read)


def _read(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        return Problem(where, "malformed", f"must be an object with {', '.join(REQUIRED)}, is {row!r:.60}")
    missing, unknown = [name for name in REQUIRED[:-1] if name not in row], sorted(set(row) - {*REQUIRED, *OPTIONAL})
    if missing or unknown:
        lacks = [f"lacks {', '.join(missing)}"] if missing else []
        has = [f"has unknown fields {', '.join(unknown)}; known are {', '.join((*REQUIRED, *OPTIONAL))}"] if unknown else []
        return Problem(where, "malformed", " and ".join(lacks + has))
    query_id = row.get("query_id", where.rpartition(":")[2])
    more = {name: row[name] for name in OPTIONAL[1:] if name in row}
    return Annotation(where, row["video_id"], row["duration_s"], query_id, row["query"], row.get("moments"), **more)
