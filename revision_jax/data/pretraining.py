"""Batches of the stages before grounding: single pictures with captions, and sequences of sentences in which a span is to be pointed at.

Stage `pretrain` stands in for CLIP, stage `language` for a pretrained language model. A batch is a pure function of (seed, stage, step), and one
whole: a caption is judged against every picture of the batch, so `example(step)` is a batch and not a row of one.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np
from jaxtyping import Bool, Int

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig, StageConfig
from revision_jax.data import prompts
from revision_jax.data.pipeline import Batch
from revision_jax.data.synthetic.stills import still_batch
from revision_jax.data.tokenizer import Tokenizer

CAPTIONS = 4  # of each picture: half of them hold
REMEMBERED = 6  # batches whose rows may still be asked for: Grain's threads read ahead
RUNS = (1, 6)  # stretches of a pointing sequence that show something
RUN_SLOTS = (2, 90)
YES_OR_NO = 0.25  # share of pointing sequences that are asked about presence alone: stage 1-B trains an adapter for a decoder that can answer so
ABSENT = 0.4  # share of pointing sequences that do not hold what is asked


class PretrainSource:
    """Examples of a `pretrain` or `language` stage: row r of batch s is example s * stage.batch + r. B pictures a batch, C captions of each:

    images uint8 [h w 3]; caption_ids, caption_mask [C S]; labels bool [B C] (which of the batch's captions hold for this picture; caption j belongs to
    picture j // C); phrase_labels bool [F B C] (the same for each of the F things that a caption speaks of); tag_ids, tag_mask [A S] and
    tag_labels [A], captions of one attribute. For `language` also: full_ids, full_mask [S] (all that the picture shows, end token included), point_slots
    int32 [T] (number of the batch's caption that slot t shows, -1 = nothing), point_query int32 [] (the caption asked for),
    point_after_ids/mask, point_answer_ids/mask: the dense level's question and answer.

    A caption is judged against every picture of its batch, so a batch is made whole and its rows handed out.
    """

    def __init__(self, config: ExperimentConfig, stage: StageConfig, tokenizer: Tokenizer, seed: int):
        """Raises ConfigError if a `language` stage finds no dense level, whose slots and prompt it borrows."""
        self.config, self.stage, self.tokenizer, self.seed = config, stage, tokenizer, seed
        self._dense: LevelConfig | None = next((level for level in config.grounding.levels if level.kind == "dense"), None)
        if stage.task == "language" and self._dense is None:
            raise ConfigError(f"stages.{stage.name}: a language stage needs a dense level in grounding.levels")
        self._forget()

    def example(self, index: int) -> Batch:
        """One row of its batch."""
        step, row = divmod(int(index), self.stage.batch)
        with self._lock:
            making = self._making.setdefault(step, threading.Lock())
        with making:  # the threads that ask for other rows of this batch wait for it instead of making it again
            batch = self._made.get(step)
            if batch is None:
                batch = self._made[step] = self.batch(step)
                with self._lock:
                    for old in sorted(self._made)[:-REMEMBERED]:
                        del self._made[old]
                        self._making.pop(old, None)
        return {name: np.asarray(value[row]) for name, value in batch.items()}

    def batch(self, step: int) -> Batch:
        """The whole batch of one step, a leading axis of B rows on every array."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed}/{self.stage.name}/{step}".encode(), digest_size=8).digest(), "little")
        rows = self.stage.batch
        stills = still_batch(key, rows, CAPTIONS, self.stage.varied)
        caption_ids, caption_mask = self._encode(stills["captions"])
        tag_ids, tag_mask = self._encode(stills["tags"])
        batch = {
            "images": stills["images"],
            "labels": stills["labels"],
            "phrase_labels": stills["phrase_labels"][:, : self.config.text.phrases],
            "caption_ids": caption_ids.reshape(rows, CAPTIONS, -1),
            "caption_mask": caption_mask.reshape(rows, CAPTIONS, -1),
            "travels": stills["travels"].reshape(rows, CAPTIONS, 2),
            "tag_ids": np.broadcast_to(tag_ids, (rows, *tag_ids.shape)),
            "tag_mask": np.broadcast_to(tag_mask, (rows, *tag_mask.shape)),
            "tag_labels": stills["tag_labels"],
        }
        if self.stage.task == "language":
            full = [_sentence(self.tokenizer, text, self.config.grounding.query_len) for text in stills["full_captions"]]
            batch["full_ids"], batch["full_mask"] = (np.stack(part) for part in zip(*full, strict=True))
            batch.update(self._pointing(np.random.default_rng(key), stills["captions"], stills["labels"]))
        return batch

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # One caption in ten thousand is longer than caption_len, and loses its end.
        encoded = [prompts.encode_query(self.tokenizer, text, self.config.grounding.query_len, self.config.text.suffix) for text in texts]
        return tuple(np.stack(part)[:, : self.stage.caption_len] for part in zip(*encoded, strict=True))

    def _pointing(self, rng: np.random.Generator, captions: list[str], labels: Bool[np.ndarray, "B Q"]) -> Batch:
        rows = self.stage.batch
        slots = np.full((rows, self._dense.tokens), -1, np.int32)
        asked = np.zeros(rows, np.int32)
        texts: list[tuple] = []
        apart = apart_captions(labels)
        sizes, prompt = self.config.grounding, self._dense.prompt
        for row in range(rows):
            slots[row], asked[row], answer = point(rng, apart, self._dense.tokens)
            presence = bool(rng.random() < YES_OR_NO)
            after_ids, after_mask = prompts.encode_question(self.tokenizer, prompt, captions[asked[row]], sizes.prompt_len, presence)
            given = answer is not None if presence else answer
            texts.append((after_ids, after_mask, *prompts.encode_answer(self.tokenizer, prompt, given, sizes.answer_len)))
        names = ("point_after_ids", "point_after_mask", "point_answer_ids", "point_answer_mask")
        return {"point_slots": slots, "point_query": asked, **{name: np.stack(part) for name, part in zip(names, zip(*texts, strict=True), strict=True)}}

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[int, Batch] = {}
        self._making: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_made", "_making")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()


def apart_captions(labels: Bool[np.ndarray, "B Q"]) -> Bool[np.ndarray, "Q Q"]:
    """Which captions surely mean different things: both hold for their own picture, and no picture of the batch shows both.

    Were one to follow from the other, the picture of the narrower one would show both. The diagonal is True for captions that hold for their own picture.
    """
    images, captions = labels.shape
    holds = labels[np.arange(captions) // (captions // images), np.arange(captions)]
    shared = labels.T.astype(np.float32) @ labels.astype(np.float32) > 0
    return (~shared | np.eye(captions, dtype=bool)) & holds[:, None] & holds[None, :]


def point(rng: np.random.Generator, apart: Bool[np.ndarray, "Q Q"], length: int) -> tuple[Int[np.ndarray, "T"], int, tuple[int, int] | None]:
    """A pointing sequence: (caption of each of `length` slots or -1, the caption asked for, first and last slot that show it or None).

    1 to 6 runs of 2 to 90 slots (log-uniform, shortened to fit), each of another caption, with gaps of any length between them. apart: `apart_captions`;
    if no caption of the batch holds for its picture, the sequence is empty and caption 0 is asked for in vain.
    """
    slots = np.full(length, -1, np.int32)
    holding = np.flatnonzero(np.diagonal(apart))
    if not len(holding):
        return slots, 0, None
    query = int(holding[rng.integers(len(holding))])
    others = np.flatnonzero(apart[query])
    others = rng.permutation(others[others != query])
    present = rng.random() >= ABSENT
    count = int(rng.integers(RUNS[0], RUNS[1] + 1))
    shown = ([query] if present else []) + [int(other) for other in others[: count - present]]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    lengths = np.exp(rng.uniform(np.log(RUN_SLOTS[0]), np.log(RUN_SLOTS[1] + 1), len(shown))).astype(int)
    lengths = np.minimum(lengths, length)
    while lengths.sum() > length:
        longest = int(np.argmax(lengths))
        lengths[longest] = max(1, lengths[longest] - max(1, int(lengths.sum() - length + 1) // 2))
    gaps = np.diff([0, *np.sort(rng.integers(0, length - lengths.sum() + 1, len(shown)))]) if len(shown) else []
    at, answer = 0, None
    for caption, run, gap in zip(shown, lengths, gaps, strict=True):
        at += int(gap)
        slots[at : at + run] = caption
        if caption == query:
            answer = (at, at + int(run) - 1)
        at += int(run)
    return slots, query, answer


def _sentence(tokenizer: Tokenizer, text: str, length: int) -> tuple[Int[np.ndarray, "S"], Bool[np.ndarray, "S"]]:
    """Ids of a text and the end token, padded. Raises ConfigError if it does not fit."""
    ids = [*tokenizer.encode(text), tokenizer.eos]
    if len(ids) > length:
        raise ConfigError(f"grounding.query_len: must be at least {len(ids)} for the caption {text!r}, is {length}")
    padded = np.full(length, tokenizer.pad, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
