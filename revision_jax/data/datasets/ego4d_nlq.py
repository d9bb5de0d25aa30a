"""Ego4D, natural language queries (Grauman et al., CVPR 2022): "Where did I put the keys?" about what a head camera saw. The test split has no answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, json_value
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation, Problem
from revision_jax.errors import UserError


@dataclass(frozen=True)
class Ego4dRules(Rules):
    """As the benchmark's VSLNet: lower case, one question mark, questions without words left out. Moments without length are left out: VSLNet widens them to
    a feature's 0.53 s. Those that overrun their clip are cut."""

    splits: tuple[str, ...] = ("train", "validation")
    lowercase: bool = True
    ending: Literal["keep", "bare", "question"] = "question"
    empty_query: Literal["error", "drop"] = "drop"
    reversed_moment: Literal["error", "drop", "swap"] = "drop"
    outside_moment: Literal["error", "drop", "clip"] = "clip"
    unit: Literal["clip", "video"] = "clip"  # what is searched: the annotated clip of about 8 minutes, as everybody does, or the whole recording


class Ego4dNlq(GroundingBuilder):
    """Clips of 8 minutes (or their recordings of up to hours); 11,291 / 3,874 questions in version 1 of the annotations."""

    name = "ego4d_nlq"
    ASKED = "https://ego4ddataset.com (sign the licence; `ego4d --datasets annotations`)"
    RULES: ClassVar = {"clip": Ego4dRules(), "video": Ego4dRules(unit="video")}
    FILES = (
        Wanted("train", ("nlq_train.json",), splits=("train",)),
        Wanted("validation", ("nlq_val.json",), splits=("validation",)),
        Wanted("test", ("nlq_test_unannotated.json",), splits=("test",)),
        Wanted("videos", ("ego4d.json",)),  # the recordings' lengths
    )

    @classmethod
    def wanted(cls, rules: Ego4dRules) -> tuple[Wanted, ...]:
        return tuple(wanted for wanted in super().wanted(rules) if wanted.role != "videos" or rules.unit == "video")

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: Ego4dRules) -> Iterator[Row]:
        file = files[split]
        data, problems = json_value(file)
        lengths = _lengths(files["videos"]) if rules.unit == "video" else {}
        yield from problems
        if not isinstance(data, dict) or not isinstance(data.get("videos"), list):
            raise UserError(f"{file.path}: {file.name} is not of the owners' layout (no list `videos`)")

        def video(where: str, row: dict[str, Any]) -> list[Row]:
            return [annotation for clip in row["clips"] for annotation in _clip(f"{where}, clip {clip['clip_uid']}", row["video_uid"], clip, rules, lengths)]

        yield from each(((f"{file.name}: video {number}", row) for number, row in enumerate(data["videos"])), video)


def _lengths(file: OwnersFile) -> dict[str, float]:
    try:
        return {video["video_uid"]: video["duration_sec"] for video in json_value(file)[0]["videos"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file.path}: {file.name} is not of the owners' layout ({type(error).__name__}: {error})") from None


def _clip(where: str, video: str, clip: dict[str, Any], rules: Ego4dRules, lengths: dict[str, float]) -> Iterator[Row]:
    begins, ends = clip["video_start_sec"], clip["video_end_sec"]
    for annotation in clip["annotations"]:
        for number, query in enumerate(annotation["language_queries"]):
            uid = f"{annotation.get('annotation_uid', clip['clip_uid'])}_{number}"
            times = query.get(f"{rules.unit}_start_sec"), query.get(f"{rules.unit}_end_sec")
            moments = None if times == (None, None) else [times]
            about: dict[str, Any] = {"query_id": uid, "query": query.get("query"), "moments": moments, "category": query.get("template") or ""}
            if rules.unit == "clip":
                yield Annotation(f"{where}, {uid}", clip["clip_uid"], ends - begins, **about, source_id=video, offset_s=begins)
            elif video in lengths:
                yield Annotation(f"{where}, {uid}", video, lengths[video], **about)
            else:
                yield Problem(f"{where}, {uid}", "unknown_video", f"video {video!r} is not in ego4d.json")
