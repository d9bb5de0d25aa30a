"""Charades-STA (Gao et al., ICCV 2017): a line is `video start end##sentence`; the videos' lengths are in Charades' own tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from revision_jax.data.datasets.base import GroundingBuilder
from revision_jax.data.datasets.files import OwnersFile, Row, Wanted, each, lines, table
from revision_jax.data.datasets.rules import Rules
from revision_jax.data.datasets.schema import Annotation, Problem


@dataclass(frozen=True)
class CharadesRules(Rules):
    """As 2D-TAN (Zhang et al., AAAI 2020): ends are cut to the video, moments that do not begin before they end are left out, no final period."""

    splits: tuple[str, ...] = ("train", "test")
    ending: Literal["keep", "bare", "question"] = "bare"
    reversed_moment: Literal["error", "drop", "swap"] = "drop"
    outside_moment: Literal["error", "drop", "clip"] = "clip"


class CharadesSta(GroundingBuilder):
    """9,848 videos of half a minute at home; 12,408 / 3,720 sentences. There is no validation split."""

    name = "charades_sta"
    ASKED = "https://github.com/jiyanggao/TALL (charades_sta_*.txt) and https://prior.allenai.org/projects/charades (Charades.zip, the tables with `length`)"
    RULES: ClassVar = {"default": CharadesRules()}
    FILES = tuple(
        wanted
        for split in ("train", "test")
        for wanted in (
            Wanted(f"{split} sentences", (f"charades_sta_{split}.txt",), splits=(split,)),
            Wanted(f"{split} videos", (f"Charades_v1_{split}.csv",), ("Charades.zip",), (split,)),
        )
    )

    @classmethod
    def rows(cls, split: str, files: dict[str, OwnersFile], rules: CharadesRules) -> Iterator[Row]:
        lengths: dict[str, float] = {}

        def length(where: str, row: dict[str, str]) -> list[Problem]:
            lengths[row["id"]] = float(row["length"])
            return []

        yield from each(table(files[f"{split} videos"], "id", "length"), length)

        def sentence(where: str, line: str) -> Annotation | Problem:
            moment, marks, query = line.partition("##")
            if not marks:
                return Problem(where, "malformed", "has no ## between moment and sentence")
            video, start, end = moment.split()
            if video not in lengths:
                return Problem(where, "unknown_video", f"video {video!r} is not in {files[f'{split} videos'].name}")
            return Annotation(where, video, lengths[video], f"{split}-{where.rpartition(':')[2]}", query, [(float(start), float(end))])

        yield from each(lines(files[f"{split} sentences"]), sentence)
