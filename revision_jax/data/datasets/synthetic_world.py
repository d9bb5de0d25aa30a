"""The rendered world as a dataset: folders that `launch.synthesize` wrote, each with annotations.json. Its own splits are train, validation and test; videos
of a user's seed are one more, and so are the composition and the length split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, each, json_value
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation
from revision_jax.errors import UserError

ANNOTATIONS = "annotations.json"


@dataclass(frozen=True)
class WorldRules(Rules):
    """Annotations of the world are exact: nothing is mended."""

    splits: tuple[str, ...] = ("user",)


class SyntheticWorld(GroundingBuilder):
    """Rendered videos with complete annotations: a question's moments are all there are."""

    name = "synthetic_world"
    ASKED = "your own machine: python -m launch.synthesize --out DIR/NAME"
    RULES: ClassVar = {"default": WorldRules(), "exam": WorldRules(splits=("train", "validation", "test"))}

    @classmethod
    def located(cls, manual: Path, rules: WorldRules) -> dict[str, OwnersFile]:
        """video -> its annotations.json."""
        found = sorted(manual.rglob(ANNOTATIONS))
        if not found:
            raise UserError(f"{manual}: holds no folder with {ANNOTATIONS}; make one with python -m launch.synthesize --out {manual}/NAME")
        return {path.parent.relative_to(manual).as_posix() if path.parent != manual else manual.name: OwnersFile(path) for path in found}

    @classmethod
    def sources(cls, files: Mapping[str, OwnersFile]) -> dict[str, str]:
        return {f"{video}/{ANNOTATIONS}": file.digest() for video, file in files.items()}

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: WorldRules) -> Iterator[Row]:
        for video, file in files.items():
            about, problems = json_value(file)
            yield from problems
            if not isinstance(about, dict) or not isinstance(about.get("queries"), list):
                raise UserError(f"{file.path}: is not an annotation file of the rendered world (no list `queries`)")
            if about.get("split", "user") == split:
                yield from each(((f"{video}/{ANNOTATIONS}: question {number}", (video, about, q)) for number, q in enumerate(about["queries"])), _read)


def _read(where: str, item: tuple[str, dict, dict[str, Any]]) -> Annotation:
    video, about, q = item
    return Annotation(where, video, about["duration_s"], f"{video}/{q['query_id']}", q["query"], q["moments"], q["kind"], source_id=str(about.get("seed", "")))
