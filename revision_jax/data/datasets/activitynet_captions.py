"""ActivityNet Captions (Krishna et al., ICCV 2017): {video: {duration, timestamps, sentences}} a split. Validation is val_1, test is val_2, as in 2D-TAN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_value
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation


@dataclass(frozen=True)
class ActivitynetRules(Rules):
    """As 2D-TAN (Zhang et al., AAAI 2020): moments are cut to the video, those that do not begin before they end are left out."""

    reversed_moment: Literal["error", "drop", "swap"] = "drop"
    outside_moment: Literal["error", "drop", "clip"] = "clip"


class ActivitynetCaptions(GroundingBuilder):
    """20 thousand videos of two minutes; 37,421 / 17,505 / 17,031 sentences."""

    name = "activitynet_captions"
    ASKED = "https://cs.stanford.edu/people/ranjaykrishna/densevid/ (captions.zip)"
    RULES: ClassVar = {"default": ActivitynetRules()}
    FILES = tuple(
        Wanted(split, (f"{word}.json",), ("captions.zip",), (split,)) for split, word in {"train": "train", "validation": "val_1", "test": "val_2"}.items()
    )

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: ActivitynetRules) -> Iterator[Row]:
        file = files[split]
        videos, problems = json_value(file)
        return chain(each(((f"{file.name}: video {item[0]}", item) for item in videos.items()), _read), problems)


def _read(where: str, item: tuple[str, dict]) -> Iterable[Annotation]:
    video, row = item
    pairs = zip(row["sentences"], row["timestamps"], strict=True)
    return [Annotation(where, video, row["duration"], f"{video}-{number}", query, [moment]) for number, (query, moment) in enumerate(pairs)]
