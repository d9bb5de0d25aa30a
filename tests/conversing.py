"""A tiny VideoLLaMA3 to train on conversations: the model of tests/golden/chat.npz, a tokenizer with all control tokens, files, and a built dataset."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image

from revision_jax.config import ConversationConfig, ExperimentConfig, RowConfig, StageConfig
from revision_jax.data.chat_template import STREAM_END, STREAM_START
from revision_jax.data.datasets.build import Built, build
from revision_jax.data.tokenizer import Tokenizer
from tests.chat.conftest import loaded, write_film
from tests.golden import make_chat, make_conversation

ROWS = (RowConfig(192, 96, 96, ((2, 64),)), RowConfig(320, 256, 128, ((5, 64), (1, 96))))


@functools.cache
def model() -> tuple[ExperimentConfig, dict]:
    """(config, state) in float32. Patches are 4 pixels; the vocabulary is 264 tokens."""
    with np.load(make_chat.FILE) as file:
        weights = {name.removeprefix("weight/"): file[name] for name in file.files if name.startswith("weight/")}
        return loaded(weights, json.loads(str(file["config"])))


@functools.cache
def tokenizer() -> Tokenizer:
    """As transformers' conversion has it, and the original's tokens of streams."""
    return Tokenizer(make_conversation.tokenizer([*make_chat.SPECIAL, STREAM_START, STREAM_END]), {"eos": "<|im_end|>"})


def stage(**changes) -> StageConfig:
    """A stage of conversations for the tiny model; fields of ConversationConfig or of StageConfig."""
    own = {field.name for field in dataclasses.fields(ConversationConfig)}
    asked = {"mixture": (("all", 1.0),), "rows": ROWS, "visual": 64, "max_frames": 3, "pruning": True}
    asked |= {name: changes.pop(name) for name in list(changes) if name in own}
    common = {"name": "talk", "task": "conversation", "level": "patch", "train": ("params", "adapter/patch"), "batch": 2, "steps": 4}
    return StageConfig(**{**common, **changes}, conversation=ConversationConfig(**asked))


def write_media(folder: Path) -> Path:
    """The pictures and the film that `make_conversation.CASES` speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in make_conversation.SIZES:
        Image.fromarray(make_conversation.picture(name)).save(folder / name)
    write_film(folder / "film.mp4", seconds=make_conversation.SECONDS)
    return folder


def dataset(root: Path, rows: list[dict], name: str = "all") -> Built:
    """`rows` of the annotation format, built as ROOT/NAME."""
    manual = root / "manual" / name
    manual.mkdir(parents=True)
    (manual / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return build("conversations", manual, root / name)


def config(stages: tuple[StageConfig, ...], root: Path, media: Path, **data) -> ExperimentConfig:
    """The tiny model's config with stages and data."""
    made = model()[0]
    data = dataclasses.replace(made.data, root=str(root), media=str(media), **data)
    return dataclasses.replace(made, data=data, train=dataclasses.replace(made.train, stages=stages, log_every=1))
