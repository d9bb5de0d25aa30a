"""QVHighlights (Lei et al., NeurIPS 2021): news and vlogs of 150 s, several moments a question. A JSON object a line, the test split without answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_lines
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation

CLIP = re.compile(r"(?P<source>.+)_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)")  # a vid: {YouTube id}_{start}_{end}


@dataclass(frozen=True)
class QvHighlightsRules(Rules):
    """Text and moments as they are. `test` is left out: its answers are on the owners' server."""

    splits: tuple[str, ...] = ("train", "validation")


class QvHighlights(GroundingBuilder):
    """10,148 videos of 150 s, 10,310 questions, 18,367 moments in multiples of two seconds."""

    name = "qvhighlights"
    ASKED = "https://github.com/jayleicn/moment_detr (folder data)"
    RULES: ClassVar = {"default": QvHighlightsRules()}
    FILES = tuple(
        Wanted(split, (f"highlight_{word}_release.jsonl",), splits=(split,))
        for split, word in {"train": "train", "validation": "val", "test": "test"}.items()
    )

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: QvHighlightsRules) -> Iterator[Row]:
        return each(json_lines(files[split]), _read)


def _read(where: str, row: dict[str, Any]) -> Annotation:
    clip = CLIP.fullmatch(row["vid"])
    source, offset = (clip["source"], float(clip["start"])) if clip else ("", 0.0)
    moments = row.get("relevant_windows") or None  # there is no question without an answer: an empty list says as little as none
    return Annotation(where, row["vid"], row["duration"], row["qid"], row["query"], moments, source_id=source, offset_s=offset)
