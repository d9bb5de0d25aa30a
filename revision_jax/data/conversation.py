"""A conversation as training sees it: its tokens, which of them are learnt, and the pictures whose tokens stand in their places. Host only.

    <|im_start|>user                    -
    (places of an image's tokens)       -
    What is it?<|im_end|>               -
    <|im_start|>assistant               -
    A cat.<|im_end|>                    learnt, its end token too; the line break behind it is not

Text and labels are those of VideoLLaMA3's own trainer, token for token: a user's text is stripped around the pictures, an answer stays as it is, a frame
has as many places as tokens of it are kept. Three of its habits are not followed: it takes a system line for an answer; it puts another conversation, at
random, in the place of one that cannot be read; and a stream's frames lose their times to a misspelt key (its template, and the paper, have them).

Source: github.com/DAMO-NLP-SG/VideoLLaMA3 (Apache 2.0), its data reader and processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from revision_jax.config import ExperimentConfig, StageConfig
from revision_jax.data import chat_template as template
from revision_jax.data import frames as host_frames
from revision_jax.data.chat_template import Frame, Message, Shown
from revision_jax.data.datasets.conversations import TAGS, Conversation
from revision_jax.data.media import Medium, Pictures, look_video, read
from revision_jax.data.processing import Rules, Shape, read_image, target_sizes
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError

LEAST = 16  # tokens of an image or frame, processor "original"


class Shot(NamedTuple):
    """An image, or a video's frames: what is shown, and m, its merge size."""

    pictures: Pictures
    merge: int


class Sample(NamedTuple):
    """One conversation. Token i is predicted from those before it; the places take the kept tokens of `shots`, in order."""

    ids: Int32[np.ndarray, " S"]
    learnt: Bool[np.ndarray, " S"]
    places: Bool[np.ndarray, " S"]
    shots: tuple[Shot, ...]


class ConversationReader:
    """Reads the conversations of one stage. `media` is the folder that their paths are relative to. Can be pickled."""

    def __init__(self, config: ExperimentConfig, stage: StageConfig, tokenizer: Tokenizer, media: str | Path):
        """Raises UserError for a tokenizer without the special tokens that conversations are written with."""
        asked = stage.conversation
        self.tokenizer, self.media = tokenizer, Path(media)
        self.specials = template.specials(tokenizer)
        self.vision, self.stream_ends = config.encoder(config.patch_encoder), asked.stream_ends
        self.pruner = config.pruner if asked.pruning else None
        self.rules = Rules(
            asked.processor, asked.image_merge, asked.video_merge, asked.fps, max_frames=asked.max_frames, tokens=(min(LEAST, asked.visual), asked.visual)
        )
        self.reserved = (*dict.fromkeys((template.START, template.END, self.specials.image, self.specials.video, template.STREAM_START, template.STREAM_END)),)

    def read(self, conversation: Conversation) -> Sample:
        """Raises UserError, naming the sample: media that cannot be read, text that holds a control token, nothing to learn."""
        try:
            return self._read(conversation)
        except UserError as error:
            raise UserError(f"{conversation.sample_id}: {error}") from error

    def _read(self, conversation: Conversation) -> Sample:
        for turn in conversation.turns:
            text = turn.text.replace(TAGS[conversation.modality], "") if turn.role == "user" and conversation.modality in TAGS else turn.text
            found = [token for token in self.reserved if token in text]
            if found:
                raise UserError(f"a turn holds {', '.join(found)}, which stands for the form of a conversation itself")
        if conversation.modality == "stream":
            messages, shots = self._stream(conversation)
        else:
            shots = self._images(conversation.media) if conversation.modality == "image" else ()
            shown = [Shown((shot.pictures.keep.shape[1],)) for shot in shots]
            if conversation.modality == "video":
                medium, shot = self._video(conversation.media[0])
                shots, shown = (shot,), [Shown(tuple(map(int, shot.pictures.keep.sum(1))), medium.seconds)]
            messages = self._turns(conversation, shown)
        return self._sample(messages, shots)

    # ---- pictures

    def _images(self, paths: Sequence[str]) -> tuple[Shot, ...]:
        images = [read_image(self.media / path, self.rules) for path in paths]
        sizes = target_sizes([Shape("image", *image.shape[:2]) for image in images], self.rules, self.vision.patch)
        merge = self.rules.image_merge
        side = self.vision.patch * merge
        whole = [np.ones((1, (height // side) * (width // side)), bool) for height, width in sizes]
        return tuple(Shot(Pictures(host_frames.resize(image[None], *size), keep), merge) for image, size, keep in zip(images, sizes, whole, strict=True))

    def _video(self, path: str, start_s: float = 0.0, end_s: float | None = None) -> tuple[Medium, Shot]:
        shape, seconds, reads = look_video(self.media / path, self.rules, start_s, end_s)
        (size,) = target_sizes([shape], self.rules, self.vision.patch)
        medium = Medium(str(self.media / path), "", shape, size, self.rules.video_merge, seconds, reads)
        medium, pictures = read(medium, self.rules, self.vision, self.pruner)
        return medium, Shot(pictures, medium.merge)

    # ---- text

    def _turns(self, conversation: Conversation, shown: Sequence[Shown]) -> list[Message]:
        """The turns as messages, pictures in the places of their tags. A user's text is stripped between them."""
        tag, left, messages = TAGS.get(conversation.modality, TAGS["video"]), list(shown), []
        for turn in conversation.turns:
            if turn.role != "user":
                messages.append(Message(turn.role, (turn.text,)))
                continue
            parts: list[str | Shown] = []
            for number, text in enumerate(turn.text.split(tag)):
                parts += [left.pop(0)] if number else []
                parts += [text.strip()] if text.strip() else []
            messages.append(Message("user", tuple(parts)))
        return messages

    def _stream(self, conversation: Conversation) -> tuple[list[Message], tuple[Shot, ...]]:
        """Each frame is a turn of its own, before the first turn that is said after it; frames behind the last turn are left out."""
        missing = [token for token in (template.STREAM_START, template.STREAM_END) if not self.tokenizer.has(token)]
        if missing:
            raise UserError(f"the tokenizer lacks {', '.join(missing)}, which a stream is written with")
        medium, shot = self._video(conversation.media[0], conversation.start_s, conversation.end_s)
        counts, messages, frame = shot.pictures.keep.sum(1), [], 0
        for turn in conversation.turns:
            # Times of turns are stored as float32: a frame that is shown at the very moment is before it.
            while frame < len(counts) and np.float32(medium.seconds[frame] + conversation.start_s) <= np.float32(turn.time_s):
                messages.append(Message("stream", (Frame(int(counts[frame]), medium.seconds[frame]),)))
                frame += 1
            messages.append(Message(turn.role, (turn.text,)))
        frames, keep = shot.pictures
        return messages, (Shot(Pictures(frames[:frame], keep[:frame]), shot.merge),) if frame else ()

    def _sample(self, messages: Sequence[Message], shots: tuple[Shot, ...]) -> Sample:
        ids, learnt = [], []
        for message in messages:
            text = template.render([message], self.rules, self.specials, answer=False)
            own = np.asarray(self.tokenizer.encode(text), np.int32)
            ids.append(own)
            learnt.append(self._learnt(message, own))
        together = np.concatenate(ids)
        labels = np.concatenate(learnt)
        labels[0] = False  # nothing stands before it
        if not labels.any():
            raise UserError("holds nothing to learn: no answer")
        places = np.isin(together, self.specials.places)
        shown = sum(int(shot.pictures.keep.sum()) for shot in shots)
        if places.sum() != shown:
            whole = f"{self.specials.image} and {self.specials.video}"
            raise UserError(f"has {int(places.sum())} places for {shown} visual tokens; the tokenizer must keep {whole} whole")
        return Sample(together, labels, places, shots)

    def _learnt(self, message: Message, ids: Int32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        learnt = np.zeros(len(ids), bool)
        if message.role == "assistant":
            learnt[len(self.tokenizer.encode(template.opening("assistant"))) : np.flatnonzero(ids == self.specials.end)[-1] + 1] = True
        elif message.role == "stream" and self.stream_ends:
            places = np.isin(ids, self.specials.places)
            learnt[1:] = places[:-1] & ~places[1:]  # what follows a frame
            learnt[ids == self.tokenizer.id(template.STREAM_END)] = True
        return learnt


def centre(merge: int) -> Int32[np.ndarray, "4"]:
    """The patches of an m x m block whose mean is its merged token (models/vision.py `merge_tokens`): four, the same one four times where m is odd."""
    low, high = (merge - 1) // 2, merge // 2
    return np.array([low * merge + low, low * merge + high, high * merge + low, high * merge + high], np.int32)


def runs(shot: Shot, patch: int, before_encoder: bool) -> list[tuple[int, int]]:
    """(pictures one after another, patches of each) that the encoder sees of a shot; `before_encoder`: dropped tokens are not even seen."""
    frames, keep = shot.pictures
    if not before_encoder:
        return [(len(frames), frames.shape[1] // patch * (frames.shape[2] // patch))]
    found: list[tuple[int, int]] = []
    for count in keep.sum(1) * shot.merge**2:
        if found and found[-1][1] == count:
            found[-1] = (found[-1][0] + 1, int(count))
        elif count:
            found.append((1, int(count)))
    return found

