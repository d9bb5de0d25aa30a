"""MAD: sentences of movies' audio descriptions (Soldan et al., CVPR 2022). JSON a split: {query_id: {movie, sentence, timestamps, movie_duration, ...}}."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_value
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation

ARCHIVE = ("annotations.tar.xz",)


@dataclass(frozen=True)
class MadRules(Rules):
    """As the owners' loader: moments are cut to the movie, reversed ones left out. As ReVisionLLM: lower case, no final period."""

    lowercase: bool = True
    ending: Literal["keep", "bare", "question"] = "bare"
    reversed_moment: Literal["error", "drop", "swap"] = "drop"
    outside_moment: Literal["error", "drop", "clip"] = "clip"
    timestamps: Literal["timestamps", "ext_timestamps"] = "timestamps"  # the owners' baselines read the extended ones, ReVisionLLM these


class Mad(GroundingBuilder):
    """Sentences of audio descriptions, grounded in 488 to 650 movies; 280,183 / 32,064 / 72,044 of them."""

    name = "mad"
    ASKED = "https://github.com/Soldelli/MAD (fill the form, sign the non-disclosure agreement; annotations.tar.xz comes by mail)"
    RULES: ClassVar = {"default": MadRules(), "extended": MadRules(timestamps="ext_timestamps")}
    FILES = (
        Wanted("train", ("MAD_train.json",), ARCHIVE, ("train",)),
        Wanted("validation", ("MAD_val.json",), ARCHIVE, ("validation",)),
        Wanted("test", ("MAD_test.json",), ARCHIVE, ("test",)),
    )

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: MadRules) -> Iterator[Row]:
        file = files[split]
        queries, problems = json_value(file)

        def read(where: str, item: tuple[str, Any]) -> Annotation:
            key, row = item
            return Annotation(where, row["movie"], row["movie_duration"], key, row["sentence"], [row[rules.timestamps]] if row.get(rules.timestamps) else None)

        return chain(each(((f"{file.name}: query {item[0]}", item) for item in queries.items()), read), problems)
