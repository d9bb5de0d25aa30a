"""Batches of the stages before grounding: single pictures with captions, and sequences of sentences in which a span is to be pointed at.

Stage `pretrain` stands in for CLIP, stage `language` for a pretrained language model. A batch is a pure function of (seed, stage, step), and one
whole: a caption is judged against every picture of the batch, so `example(step)` is a batch and not a row of one.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Int

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig, StageConfig
from revision_jax.data import prompts
from revision_jax.data.pipeline import Batch
from revision_jax.data.synthetic.stills import still_batch
from revision_jax.data.tokenizer import Tokenizer

CAPTIONS = 4  # of each picture: half of them hold
ROWS = 16  # pointing sequences of a batch
RUNS = (1, 6)  # stretches of a pointing sequence that show something
RUN_SLOTS = (2, 90)
ABSENT = 0.4  # share of pointing sequences that do not hold what is asked


class PretrainSource:
    """Batches of a `pretrain` or `language` stage, B = stage.batch pictures, C captions of each, caption j of picture j // C:

    images uint8 [B h w 3]; caption_ids, caption_mask [B*C S]; labels bool [B B*C]. For `language` also: full_ids, full_mask [B S] (all that a picture
    shows, end token included), point_slots int32 [R T] (number of the caption that slot t shows, -1 = nothing), point_query int32 [R] (the caption asked
    for), point_after_ids/mask, point_answer_ids/mask: the dense level's question and answer.
    """

    def __init__(self, config: ExperimentConfig, stage: StageConfig, tokenizer: Tokenizer, seed: int):
        """Raises ConfigError if a `language` stage finds no dense level, whose slots and prompt it borrows."""
        self.config, self.stage, self.tokenizer, self.seed = config, stage, tokenizer, seed
        self._dense: LevelConfig | None = next((level for level in config.grounding.levels if level.kind == "dense"), None)
        if stage.task == "language" and self._dense is None:
            raise ConfigError(f"stages.{stage.name}: a language stage needs a dense level in grounding.levels")

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed}/{self.stage.name}/{step}".encode(), digest_size=8).digest(), "little")
        stills = still_batch(key, self.stage.batch, CAPTIONS)
        length = self.config.grounding.query_len
        encoded = [prompts.encode_query(self.tokenizer, caption, length) for caption in stills["captions"]]
        batch = {
            "images": stills["images"], "labels": stills["labels"],
            "caption_ids": np.stack([ids for ids, _ in encoded]), "caption_mask": np.stack([mask for _, mask in encoded]),
        }  # fmt: skip
        if self.stage.task == "language":
            full = [_sentence(self.tokenizer, text, length) for text in stills["full_captions"]]
            batch["full_ids"], batch["full_mask"] = (np.stack(part) for part in zip(*full, strict=True))
            batch.update(self._pointing(np.random.default_rng(key), stills["captions"], stills["labels"]))
        return batch

    def example(self, index: int) -> Batch:
        """The whole batch of step `index`: to be read with one example a step, and `collate`d."""
        return self.batch(index)

    @staticmethod
    def collate(examples: list[Batch]) -> Batch:
        """One example is a batch already. Raises ValueError for several."""
        if len(examples) != 1:
            raise ValueError(f"a pre-training example is a whole batch: read 1 a step, not {len(examples)}")
        return examples[0]

    def _pointing(self, rng: np.random.Generator, captions: list[str], labels: Bool[np.ndarray, "B Q"]) -> Batch:
        slots = np.full((ROWS, self._dense.tokens), -1, np.int32)
        asked = np.zeros(ROWS, np.int32)
        texts: list[tuple] = []
        apart = apart_captions(labels)
        sizes, prompt = self.config.grounding, self._dense.prompt
        for row in range(ROWS):
            slots[row], asked[row], answer = point(rng, apart, self._dense.tokens)
            _, after_ids, after_mask = prompts.encode_prompt(self.tokenizer, prompt, captions[asked[row]], sizes.prompt_len)
            texts.append((after_ids, after_mask, *prompts.encode_answer(self.tokenizer, prompt, answer, sizes.answer_len)))
        names = ("point_after_ids", "point_after_mask", "point_answer_ids", "point_answer_mask")
        return {"point_slots": slots, "point_query": asked, **{name: np.stack(part) for name, part in zip(names, zip(*texts, strict=True), strict=True)}}


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
