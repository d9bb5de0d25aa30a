"""ExtremeWhenBench (Seo and Kim, arXiv 2606.12300): 2,273 questions about 194 videos of an hour and more, for testing only. A JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_lines
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation


@dataclass(frozen=True)
class ExtremeWhenBenchRules(Rules):
    """Questions and moments as they are."""

    splits: tuple[str, ...] = ("test",)
    slack_s: float = 1.0  # durations and moments are whole seconds


class ExtremeWhenBench(GroundingBuilder):
    """Open questions ("When does ...?") with one moment of 9 s in the median; the videos are those of LVBench, MLVU and VideoMME."""

    name = "extremewhenbench"
    ASKED = 'https://huggingface.co/datasets/min1321/extreme-when-bench (`load_dataset(...)["test"].to_json("extremewhenbench.jsonl")`)'
    RULES: ClassVar = {"default": ExtremeWhenBenchRules()}
    FILES = (Wanted("test", ("extremewhenbench.jsonl", "extreme-when-bench.jsonl", "test.jsonl"), splits=("test",)),)

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: ExtremeWhenBenchRules) -> Iterator[Row]:
        return each(json_lines(files[split]), _read)


def _read(where: str, row: dict[str, Any]) -> Annotation:
    moment = row.get("correct_interval")
    category = "/".join(part for part in (row.get("source_corpus"), row.get("category")) if part)
    return Annotation(where, row["video_id"], row["video_duration_s"], row["qid"], row["question"], [moment] if moment else None, category=category)
