"""Conversations about images and videos in VideoLLaMA3's annotation format: all .json (a list) and .jsonl (an object a line) files of a folder.

    {"image": ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "<image>\\n<image>\\nWhat changed?"}, {"from": "gpt", "value": "..."}]}
    {"video": ["film.mp4"], "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"}, ...]}
    {"conversations": [...]}                                                                                               text alone
    {"stream": true, "video": ["film.mp4"], "start_time": 0, "end_time": 60, "conversation": [{"role": "user", "content": "...", "time": 3.0}, ...]}

Paths are relative to the media folder. Source: github.com/DAMO-NLP-SG/VideoLLaMA3 (Apache 2.0), its training data reader; it repairs as `repair` says, and
replaces a sample that it can't use by another one at random, which is here an error or a counted skip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from revision_jax.data.datasets.base import Builder, Tally
from revision_jax.data.datasets.files import OwnersFile, climbs, json_lines, json_value
from revision_jax.data.datasets.schema import Problem, encodes, is_number
from revision_jax.errors import UserError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TAGS = {"image": "<image>", "video": "<video>"}


@dataclass(frozen=True)
class ConversationRules:
    splits: tuple[str, ...] = ("train",)
    on_error: Literal["raise", "skip"] = "raise"
    files: tuple[str, ...] = ()  # names; default: all .json and .jsonl of the folder
    repair: bool = True  # as VideoLLaMA3: turns before the first human one go, and a missing <image> or <video> is put in front
    absolute_paths: bool = False  # of images and videos; relative ones never lead out of the media folder
    media: str = ""  # this folder must hold every file named; "" = not looked at


@dataclass(frozen=True)
class Turn:
    role: str  # user | assistant | system
    text: str  # with <image> or <video> where the media go
    time_s: float = math.nan  # of a stream: when it is said, seconds of the video


@dataclass(frozen=True)
class Conversation:
    """modality: text | image | video | stream. Times are seconds of the video; a stream shows [start_s, end_s] of it, else both are NaN."""

    sample_id: str  # file and line, or place in the list
    modality: str
    media: tuple[str, ...]
    turns: tuple[Turn, ...]
    split: str
    start_s: float = math.nan
    end_s: float = math.nan

    def record(self) -> dict[str, Any]:
        """The values TFDS stores."""
        return {**vars(self), "media": list(self.media), "turns": [vars(turn) for turn in self.turns]}

    @staticmethod
    def of(record: dict[str, Any]) -> Conversation:
        """From what TFDS reads: text comes back as bytes, a sequence of turns as a turn of sequences."""
        turns = record["turns"]
        columns = zip(turns["role"], turns["text"], turns["time_s"], strict=True)
        return Conversation(
            record["sample_id"].decode("utf-8"), record["modality"].decode("utf-8"), tuple(path.decode("utf-8") for path in record["media"]),
            tuple(Turn(role.decode("utf-8"), text.decode("utf-8"), float(time)) for role, text, time in columns), record["split"].decode("utf-8"),
            float(record["start_s"]), float(record["end_s"]),
        )  # fmt: skip


class Conversations(Builder):
    """Images, several images, videos, text and streams with conversations about them."""

    name = "conversations"
    ASKED = "yourself: docs/data.md says how to write it"
    RULES: ClassVar = {"default": ConversationRules()}

    @classmethod
    def located(cls, manual: Path, rules: ConversationRules) -> dict[str, OwnersFile]:
        if rules.splits != ("train",):
            raise UserError(f"{cls.name} rule.splits: conversations have the split train alone, not {', '.join(rules.splits)}")
        names = rules.files or sorted(path.name for path in manual.iterdir() if path.suffix in (".json", ".jsonl") and path.is_file())
        missing = [name for name in names if not (manual / name).is_file()]
        if missing or not names:
            raise UserError(f"{manual}: lacks {', '.join(missing) or 'any .json or .jsonl file'}; conversations come from {cls.ASKED}")
        return {name: OwnersFile(manual / name) for name in names}

    @classmethod
    def feature_table(cls) -> Any:
        import tensorflow_datasets as tfds

        text = tfds.features.Text()
        turns = tfds.features.Sequence({"role": text, "text": text, "time_s": np.float32})
        return tfds.features.FeaturesDict({
            "sample_id": text, "modality": text, "media": tfds.features.Sequence(text), "turns": turns, "split": text,
            "start_s": np.float32, "end_s": np.float32,
        })  # fmt: skip

    @classmethod
    def checked(cls, split: str, files: dict[str, OwnersFile], rules: ConversationRules, tally: Tally) -> Iterator[Conversation]:
        for file in files.values():
            for where, row in _rows(file):
                found = row if isinstance(row, Problem) else conversation(where, row, rules, split)
                if isinstance(found, Conversation):
                    tally.kept(split)
                    yield found
                else:
                    tally.left_out(split, found)


def _rows(file: OwnersFile) -> Iterator[tuple[str, Any]]:
    if file.path.suffix == ".jsonl":
        yield from json_lines(file)
        return
    rows, problems = json_value(file)
    if not isinstance(rows, list):
        raise UserError(f"{file.path}: must hold a list of conversations")
    yield from ((f"{file.name}[{number}]", row) for number, row in enumerate(rows))
    yield from ((problem.where, problem._replace(reason="malformed")) for problem in problems)


def conversation(where: str, row: Any, rules: ConversationRules, split: str = "train") -> Conversation | Problem:
    """One sample of the annotation format, or why it is none."""
    try:
        return _stream(where, row, rules, split) if row.get("stream") else _normal(where, row, rules, split)
    except _Bad as error:
        return Problem(where, error.reason, str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"has no field {error.args[0]!r}" if isinstance(error, KeyError) else f"is not of VideoLLaMA3's format ({error})"
        return Problem(where, "malformed", said)


class _Bad(Exception):
    def __init__(self, reason: str, what: str):
        super().__init__(what)
        self.reason = reason


def _normal(where: str, row: dict[str, Any], rules: ConversationRules, split: str) -> Conversation:
    given = {name: row[name] for name in TAGS if row.get(name)}  # null and [] count as not given: tables fill up with them
    if len(given) > 1:
        raise _Bad("malformed", "names images and videos; one sample shows one kind")
    modality, paths = next(iter(given.items()), ("text", []))
    media = _media(paths, rules)
    if modality == "video" and len(media) != 1:
        raise _Bad("malformed", f"names {len(media)} videos; one sample shows one")
    turns = [Turn(_role(turn["from"]), _text(turn["value"])) for turn in row["conversations"]]
    if rules.repair:
        turns = turns[next((number for number, turn in enumerate(turns) if turn.role != "assistant"), len(turns)) :]
    spoken = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if spoken is None or not any(turn.role == "assistant" for turn in turns[spoken:]):
        raise _Bad("no_answer", "has no question with an answer behind it")
    for kind, tag in TAGS.items():
        found, wanted = sum(turn.text.count(tag) for turn in turns if turn.role == "user"), len(media) if kind == modality else 0
        if found == 0 < wanted and rules.repair:
            turns[spoken] = Turn("user", tag * wanted + turns[spoken].text)
        elif found != wanted:
            raise _Bad("placeholders", f"has {found} {tag} in the questions for {wanted} file{'s' if wanted != 1 else ''}")
    return Conversation(where, modality, media, tuple(turns), split)


def _stream(where: str, row: dict[str, Any], rules: ConversationRules, split: str) -> Conversation:
    media = _media(row["video"], rules)
    if len(media) != 1:
        raise _Bad("malformed", f"names {len(media)} videos; a stream shows one")
    start, end = row["start_time"], row["end_time"]
    if not (is_number(start) and is_number(end) and 0 <= start < end):
        raise _Bad("moment", f"start_time {start!r} and end_time {end!r} must be seconds, 0 <= start < end")
    turns, before = [], float(start)
    for turn in row["conversation"]:
        if not is_number(turn["time"]) or not before <= turn["time"] <= end:
            raise _Bad("moment", f"a turn at {turn['time']!r} s must lie between the one before it ({before:g} s) and the end ({end:g} s)")
        before = float(turn["time"])
        turns.append(Turn(_role(turn["role"]), _text(turn["content"]), before))
    if not any(turn.role == "assistant" for turn in turns):
        raise _Bad("no_answer", "has no answer")
    return Conversation(where, "stream", media, tuple(turns), split, float(start), float(end))


def _media(paths: Any, rules: ConversationRules) -> tuple[str, ...]:
    media = (paths,) if isinstance(paths, str) else tuple(paths)
    for path in media:
        if not isinstance(path, str) or not path or not encodes(path):
            raise _Bad("malformed", f"{path!r} is not the path of a file")
        if climbs(path.lstrip("/") if rules.absolute_paths else path):
            raise _Bad("path", f"{path!r} leads out of the media folder")
        if rules.media and not (Path(rules.media) / path).is_file():
            raise _Bad("missing_media", f"{path!r} is not in {rules.media}")
    return media


def _role(name: Any) -> str:
    if name not in ROLES:
        raise _Bad("malformed", f"a turn is from {name!r}, must be from one of {', '.join(ROLES)}")
    return ROLES[name]


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise _Bad("malformed", f"a turn's text is {text!r:.60}")
    if not encodes(text):
        raise _Bad("not_utf8", f"a turn holds half of a surrogate pair: {text!r:.60}")
    return text
