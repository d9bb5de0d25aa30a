"""What a conversation looks like to the model: Qwen2.5's chat template with images and videos in it, as token ids with places for visual tokens.

    <|im_start|>user
    Time 0.0s:<|video_pad|>..<|video_pad|>,Time 1.0s:<|video_pad|>..<|video_pad|>
    What happens here?<|im_end|>
    <|im_start|>assistant

A frame has as many placeholders as tokens of it were kept; an image is its placeholders; both end in a new line. Nothing is put in front of the
first turn (a system line is written only if one is given). A stream is a video whose frames are turns of their own, between those of the speakers:

    <|stream_start|>stream
    Time 3.0s: <|video_pad|>..<|video_pad|>
    <|stream_end|>

Sources: the chat template of the released checkpoints, transformers' `video_llama_3` processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from revision_jax.data.processing import Rules, timestamp_text, video_text
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError

START, END = "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
OWN = "<image>"  # of the original repository's vocabulary, for images and videos alike
STREAM_START, STREAM_END = "<|stream_start|>", "<|stream_end|>"  # of the original repository's vocabulary


@dataclass(frozen=True)
class Shown:
    """An image or a video in a message: how many tokens each frame has (an image is one frame), and at what second a video's frames are."""

    counts: tuple[int, ...]
    seconds: tuple[float, ...] | None = None  # None: an image

    @property
    def tokens(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Frame:
    """One frame of a stream: how many tokens it has, and when it is shown, in seconds since the stream began."""

    count: int
    seconds: float

    @property
    def tokens(self) -> int:
        return self.count


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user, assistant or stream; parts are texts and what is shown, in order."""

    role: str
    parts: tuple[str | Shown | Frame, ...]


class Prompt(NamedTuple):
    """Ids, and which of them are places for visual tokens (in the order in which they are shown)."""

    ids: Int32[np.ndarray, "S"]
    visual: Bool[np.ndarray, "S"]


class Specials(NamedTuple):
    """The tokenizer's control tokens, as text and as ids."""

    image: str
    video: str
    places: tuple[int, ...]  # ids that stand for a visual token
    end: int  # of a turn
    stops: tuple[int, ...]  # ids that end an answer


def specials(tokenizer: Tokenizer) -> Specials:
    """Raises UserError naming every token that the tokenizer lacks."""

    def known(token: str) -> int | None:
        try:
            return tokenizer.id(token)
        except KeyError:
            return None

    image, video = (IMAGE, VIDEO) if known(OWN) is None or None not in (known(IMAGE), known(VIDEO)) else (OWN, OWN)
    missing = [token for token in dict.fromkeys((START, END, image, video)) if known(token) is None]
    if missing:
        raise UserError(f"tokenizer: lacks the special tokens {', '.join(missing)}, which a conversation is written with")
    places = tuple(dict.fromkeys((tokenizer.id(image), tokenizer.id(video))))
    end = tokenizer.id(END)
    stops = tuple(dict.fromkeys(i for i in (end, tokenizer.eos, known("<|endoftext|>")) if i is not None))
    return Specials(image, video, places, end, stops)


def render(messages: Sequence[Message], rules: Rules, tokens: Specials, answer: bool = True) -> str:
    """The conversation as text; with `answer` the assistant's turn is opened."""
    return "".join(_message(message, rules, tokens) for message in messages) + (opening("assistant") if answer else "")


def opening(role: str) -> str:
    """What stands in front of a turn's parts."""
    return f"{STREAM_START if role == 'stream' else START}{role}\n"


def _message(message: Message, rules: Rules, tokens: Specials) -> str:
    parts = (part if isinstance(part, str) else _shown(part, rules, tokens) for part in message.parts)
    return f"{opening(message.role)}{''.join(parts)}{STREAM_END if message.role == 'stream' else END}\n"


def _shown(part: Shown | Frame, rules: Rules, tokens: Specials) -> str:
    if isinstance(part, Frame):
        return f"{timestamp_text(part.seconds, rules)} {tokens.video * part.count}\n"
    if part.seconds is None:
        return tokens.image * part.tokens + "\n"
    return video_text(part.seconds, part.counts, rules, tokens.video) + "\n"


def encode(text: str, tokenizer: Tokenizer, tokens: Specials, expected: int) -> Prompt:
    """Ids of a rendered text. Raises UserError unless it has exactly `expected` places for visual tokens."""
    ids = np.asarray(tokenizer.encode(text), np.int32)
    visual = np.isin(ids, tokens.places)
    if visual.sum() != expected:
        raise UserError(f"prompt: has {int(visual.sum())} places for {expected} visual tokens; the tokenizer must keep {tokens.image} and {tokens.video} whole")
    return Prompt(ids, visual)


def check_text(text: str, tokenizer: Tokenizer) -> str:
    """What a user says, unchanged. Raises UserError if it is empty, or holds a control token, with which it could write other turns."""
    if not text.strip():
        raise UserError("prompt: is empty; say what you want to know")
    for special in dict.fromkeys((*tokenizer.specials, START, END, IMAGE, VIDEO)):
        if special in text:
            raise UserError(f"prompt: contains {special}, which is reserved; leave it out")
    return text
