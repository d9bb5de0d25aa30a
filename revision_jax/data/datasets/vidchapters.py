"""VidChapters-7M: chapters that users gave their own videos (Yang et al., NeurIPS 2023), as the owners prepared them for grounding.

chapters_vmr_{train,val,test}.json hold a JSON object a line: in train one a video, with lists `query` and `relevant_windows`; in the others one a chapter,
whose `vid` is a running number in front of the video's id. chapters_dvc_*.json hold {video: {duration, timestamps, sentences}}. The owners' raw chapters.pkl
is a pickle and is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_lines, json_value
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation

SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class VidChaptersRules(Rules):
    """As the owners' chapters_to_vmr.py: chapters of 0.9 of the video or more are left out, and so are those without words or length."""

    lowercase: bool = True  # as ReVisionLLM
    ending: Literal["keep", "bare", "question"] = "bare"
    empty_query: Literal["error", "drop"] = "drop"
    reversed_moment: Literal["error", "drop", "swap"] = "drop"
    outside_moment: Literal["error", "drop", "clip"] = "drop"
    slack_s: float = 1.0  # the prepared files cut durations to whole seconds
    longest_share: float = 0.9
    layout: Literal["vmr", "dvc"] = "vmr"  # which of the owners' files
    video_id_len: int = 11  # of a YouTube id: the last characters of `vid`


class VidChapters(GroundingBuilder):
    """7 million chapters of 817 thousand videos: the title of a chapter is the query, the chapter the moment."""

    name = "vidchapters"
    ASKED = "https://antoyang.github.io/vidchapters.html (processed annotations, linked from github.com/antoyang/VidChapters)"
    RULES: ClassVar = {"default": VidChaptersRules(), "dvc": VidChaptersRules(layout="dvc")}
    FILES = tuple(Wanted(split, (f"chapters_vmr_{word}.json",), splits=(split,)) for split, word in SPLITS.items())

    @classmethod
    def wanted(cls, rules: VidChaptersRules) -> tuple[Wanted, ...]:
        return tuple(Wanted(split, (f"chapters_{rules.layout}_{SPLITS[split]}.json",), splits=(split,)) for split in rules.splits if split in SPLITS)

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: VidChaptersRules) -> Iterator[Row]:
        file = files[split]
        if rules.layout == "vmr":
            return each(json_lines(file), lambda where, row: _prepared(where, row, rules))
        videos, problems = json_value(file)
        return chain(each(((f"{file.name}: video {item[0]}", item) for item in videos.items()), _chapters), problems)


def _prepared(where: str, row: dict[str, Any], rules: VidChaptersRules) -> Iterable[Annotation]:
    video = row["vid"][-rules.video_id_len :]
    if isinstance(row["query"], str):
        return [Annotation(where, video, row["duration"], row["qid"], row["query"], row["relevant_windows"])]
    return [
        Annotation(where, video, row["duration"], f"{row['qid']}-{number}", query, moments)
        for number, (query, moments) in enumerate(zip(row["query"], row["relevant_windows"], strict=True))
    ]


def _chapters(where: str, item: tuple[str, dict]) -> Iterable[Annotation]:
    video, row = item
    # The owners leave out times but never titles: where the two differ in number, no title can be trusted.
    pairs = zip(row["sentences"], row["timestamps"], strict=True)
    return [Annotation(where, video, row["duration"], f"{video}-{number}", query, [moment]) for number, (query, moment) in enumerate(pairs)]
