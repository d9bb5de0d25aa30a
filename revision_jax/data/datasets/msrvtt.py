"""MSR-VTT for retrieval (Xu et al., CVPR 2016): which video is it? Every caption's moment is its whole video.

Protocols: "9k" (1k-A: 9,000 videos with all captions to train, JSFusion's 1,000 pairs to test), "7k" (1k-B's training list, same test) and "full" (the owners'
own split: 6,513 / 497 / 2,990 videos with all captions).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_value, table
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation, Problem
from revision_jax.errors import UserError

ARCHIVE = ("msrvtt_data.zip",)
OWN_SPLITS = {"train": "train", "validation": "validate", "test": "test"}


@dataclass(frozen=True)
class MsrvttRules(Rules):
    """Captions are lower case without a final period, as ReVisionLLM asks them."""

    splits: tuple[str, ...] = ("train", "test")
    lowercase: bool = True
    ending: Literal["keep", "bare", "question"] = "bare"
    protocol: Literal["9k", "7k", "full"] = "9k"


class Msrvtt(GroundingBuilder):
    """10 thousand clips of 10 to 30 s with 20 captions each."""

    name = "msrvtt"
    ASKED = "https://github.com/ArrowLuo/CLIP4Clip (release v0.0: msrvtt_data.zip)"
    RULES: ClassVar = {"9k": MsrvttRules(), "7k": MsrvttRules(protocol="7k"), "full": MsrvttRules(protocol="full", splits=("train", "validation", "test"))}
    FILES = (
        Wanted("videos", ("MSRVTT_data.json",), ARCHIVE),
        Wanted("9k", ("MSRVTT_train.9k.csv",), ARCHIVE, ("train",)),
        Wanted("7k", ("MSRVTT_train.7k.csv",), ARCHIVE, ("train",)),
        Wanted("test", ("MSRVTT_JSFUSION_test.csv",), ARCHIVE, ("test",)),
    )

    @classmethod
    def wanted(cls, rules: MsrvttRules) -> tuple[Wanted, ...]:
        roles = {"videos"} if rules.protocol == "full" else {"videos", rules.protocol, "test"}
        return tuple(wanted for wanted in super().wanted(rules) if wanted.role in roles)

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: MsrvttRules) -> Iterator[Row]:
        file = files["videos"]
        data, problems = json_value(file)
        try:
            videos = {video["video_id"]: video for video in data["videos"]}
            sentences = data["sentences"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{file.path}: {file.name} is not of the owners' layout ({type(error).__name__}: {error})") from None
        yield from problems

        def about(where: str, video: str, query_id: str | int, query: str) -> Annotation | Problem:
            if video not in videos:
                return Problem(where, "unknown_video", f"video {video!r} is not in {file.name}")
            seconds = round(videos[video]["end time"] - videos[video]["start time"], 3)
            offset = float(videos[video]["start time"])
            return Annotation(where, video, seconds, query_id, query, [(0.0, seconds)], source_id=str(videos[video].get("url", "")), offset_s=offset)

        if rules.protocol != "full" and split == "test":
            columns = ("key", "video_id", "sentence")
            yield from each(table(files["test"], *columns), lambda where, row: about(where, *(row[c] for c in ("video_id", "key", "sentence"))))
            return
        if rules.protocol == "full":
            chosen = {name for name, video in videos.items() if video.get("split") == OWN_SPLITS[split]}
        elif split == "train":
            chosen = set()
            for where, row in table(files[rules.protocol], "video_id"):
                if isinstance(row, Problem):
                    yield row
                elif row["video_id"] not in videos:
                    yield Problem(where, "unknown_video", f"video {row['video_id']!r} is not in {file.name}")
                else:
                    chosen.add(row["video_id"])
        else:
            raise UserError(f"{cls.name}: protocol {rules.protocol!r} has no split {split!r}; it has train and test")

        def caption(where: str, row: dict[str, Any]) -> Annotation | Problem | list:
            return about(where, row["video_id"], row["sen_id"], row["caption"]) if row["video_id"] in chosen else []

        yield from each(((f"{file.name}: sentence {number}", row) for number, row in enumerate(sentences)), caption)
