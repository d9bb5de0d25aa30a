"""The programs of a model: a few per level, of static shapes, whatever the film's length and the number of questions.

    level     program           rows of its batch                      shares between questions
    sparse    window tokens     windows of a group, for one question   nothing: a sparse token is made in the light of the question
    nested    run tokens        a group of runs of sparse summaries    "
    both      window answer     a group of tokens
    dense     frame prefix      a window of frames                     the KV cache up to the question (but with a "temporal" adapter, which reads it)
              frame answer      a window, for one question
    patch     patch answer      a few seconds, for one question

Rows are filled up to the next of `LevelConfig.batches` with copies whose results are dropped, questions to the next of `GroundingConfig.prompt_lengths`.
Results come back as NumPy, but for the prefixes. What the programs compute: `level_functions.py`; all that a config needs: `program_shapes.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig
from revision_jax.data.prompts import clean_query, encode_query, encode_question
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from revision_jax.grounding.generate import Decoded
from revision_jax.grounding.level_functions import LevelFunctions, WindowTokens, level_state
from revision_jax.stored_programs import StoredProgram

LONGEST_QUERY = 1000  # characters


@dataclass(frozen=True, eq=False)
class Question:
    """A question, encoded once for all levels."""

    text: str
    tokens: np.ndarray  # [S D] of the text tower
    mask: np.ndarray  # [S]
    vectors: np.ndarray  # [F E], the whole question's first
    motion: np.ndarray | None  # [2], the way that its subject is said to move
    after: dict[str, tuple[np.ndarray, np.ndarray]]  # level -> ids and mask of the text behind the visual tokens

    @property
    def says_a_way(self) -> bool:
        """Whether its subject is said to move: the tower answers with a way of length 1, or 0."""
        return self.motion is not None and bool(np.linalg.norm(self.motion) > 0.5)


class FrameAnswer(NamedTuple):
    decoded: Decoded  # leading axis: rows
    level: np.ndarray  # [rows T F] similarity of each frame
    along: np.ndarray  # [rows T] how far along the way that the question says its subject lies


class Programs:
    """Holds the state on the device and the compiled functions."""

    def __init__(self, config: ExperimentConfig, state: dict, tokenizer: Tokenizer, text_tokenizer: Tokenizer | None = None):
        """text_tokenizer: of the text tower, where it is not the decoder's. Raises ConfigError where config, tokenizers and prompts do not fit together."""
        self.config, self.tokenizer, self.text_tokenizer = config, tokenizer, text_tokenizer or tokenizer
        if tokenizer.vocab_size > config.decoder.vocab:
            raise ConfigError(f"decoder.vocab: {config.decoder.vocab} is below the tokenizer's {tokenizer.vocab_size} tokens")
        if config.text is None:
            raise ConfigError("text: this model has no text tower, which searching needs; python -m launch.chat answers about what fits into its context")
        if self.text_tokenizer.vocab_size > config.text.vocab:
            raise ConfigError(f"text.vocab: {config.text.vocab} is below the {self.text_tokenizer.vocab_size} tokens of the text tower's tokenizer")
        self.functions = LevelFunctions(config, tokenizer)
        self.needs_tokens, self.has_similarity = self.functions.needs_tokens, self.functions.has_similarity
        self.state = jax.device_put(state)
        self.calls = 0
        self._stored: dict[tuple[str, str], StoredProgram] = {}
        self.queries: TextFeatureStore | None = None  # features of questions by their text, in place of the text tower

    @property
    def names(self) -> tuple[str, ...]:
        """Feature arrays that window and frame levels read."""
        return ("frame", "tokens") if self.needs_tokens else ("frame",)

    @property
    def compiled(self) -> dict[tuple[str, str], int]:
        """Programs that were made ready, by kind and level: traced here, or read from where an earlier process stored them."""
        return {key: program.count for key, program in self._stored.items()}

    def stored(self, kind: str, name: str) -> StoredProgram:
        """The program of one kind for the level `name`, "" where it belongs to none. Called with its `level_state` before its arrays."""
        key = (kind, name)
        if key not in self._stored:
            function = self.functions.by_kind[kind]
            bound = functools.partial(function, self.config.grounding.level(name)) if name else function
            self._stored[key] = StoredProgram(bound, f"{kind}/{name}", self.functions.identity)
        return self._stored[key]

    def run(self, kind: str, name: str, *arrays: Any) -> Any:
        """One device call."""
        (out,) = self.run_each(kind, name, [arrays])
        return out

    def run_each(self, kind: str, name: str, calls: Sequence[tuple]) -> list:
        """Device calls of one program, each with its arrays. On a CPU side by side: XLA runs a loop of small operations on one core."""
        self.calls += len(calls)
        program, state = self.stored(kind, name), level_state(self.state, name)
        if len(calls) == 1 or _cores() == 1:
            return [program(state, *arrays) for arrays in calls]
        ready = [program.prepare(state, *arrays) for arrays in calls]  # not in the threads: each signature is made ready once
        with ThreadPoolExecutor(min(_cores(), len(calls))) as pool:
            return list(pool.map(lambda run, arrays: jax.block_until_ready(run(state, *arrays)), ready, calls))

    # -------------------------------------------------------------------------------------------------------------------- question

    def question(self, text: str) -> Question:
        """Encodes a question. Raises UserError for an empty one, one that is too long or holds reserved words, and one that `queries` does not hold."""
        config = self.config
        if len(clean_query(text)) > LONGEST_QUERY:  # counted apart from tokens: a word tokenizer takes any run of letters for one
            raise UserError(f"query has {len(text)} characters, at most {LONGEST_QUERY}: {text[:40]!r}...")
        after = {level.name: encode_question(self.tokenizer, level.prompt, text, config.grounding.prompt_len) for level in config.grounding.levels}
        if self.queries is not None:
            return Question(text, *self._stored_question(text), after)
        ids, mask = encode_query(self.text_tokenizer, text, config.grounding.query_len, config.text.suffix)
        out = self.run("question", "", ids[None], mask[None])
        motion = None if out["motion"] is None else np.asarray(out["motion"])[0]
        return Question(text, np.asarray(out["tokens"])[0], mask, np.asarray(out["vectors"])[0], motion, after)

    def _stored_question(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """(tokens, mask, vectors, motion) of a question from the store of text features; zeros for vectors that it does not have."""
        config = self.config
        found = self.queries.features(clean_query(text))
        tokens = found["tokens"][: config.grounding.query_len].astype(np.float32)
        fill = config.grounding.query_len - len(tokens)
        vectors = found.get("vectors", np.zeros((1 + config.text.phrases, config.text.projection), np.float32)).astype(np.float32)
        motion = found.get("motion", np.zeros(2, np.float32)).astype(np.float32) if config.text.motion else None
        return np.pad(tokens, ((0, fill), (0, 0))), np.arange(config.grounding.query_len) < len(tokens), vectors, motion

    def _questions(self, questions: Sequence[Question], level: LevelConfig) -> dict[str, np.ndarray | None]:
        stack = lambda values: np.stack(list(values))
        longest = max(int(q.after[level.name][1].sum()) for q in questions)
        s = next(length for length in self.config.grounding.prompt_lengths if length >= longest)
        return {
            "tokens": stack(q.tokens for q in questions), "mask": stack(q.mask for q in questions), "vectors": stack(q.vectors for q in questions),
            "motion": stack(q.motion for q in questions) if self.config.text.motion else None,
            "after_ids": stack(q.after[level.name][0][:s] for q in questions), "after_mask": stack(q.after[level.name][1][:s] for q in questions),
        }

    # --------------------------------------------------------------------------------------------------------------------- windows

    def window_tokens(self, level: LevelConfig, parts: Sequence[tuple[dict, jax.Array]], question: Question) -> WindowTokens:
        """Sparse tokens of the windows that `on_device` took there, in the light of a question; at their end those that fill up the last part."""
        asked = question.tokens, question.mask, question.vectors
        made = self.run_each("window tokens", level.name, [(arrays["frame"], arrays.get("tokens"), valid, *asked) for arrays, valid in parts])
        return WindowTokens(*(np.concatenate([np.asarray(x) for x in same]) for same in zip(*made, strict=True)))

    @staticmethod
    def on_device(level: LevelConfig, arrays: dict, valid: np.ndarray) -> list[tuple[dict, jax.Array]]:
        """Windows, {"frame" [W T E], "tokens" [W T N E]} and valid [W T], moved to the device once for all questions, `level.windows` a call."""
        size = level.windows
        put = lambda x: jax.device_put(_filled(x, size))
        cut = [slice(first, first + size) for first in range(0, len(valid), size)]
        return [({name: put(x[part]) for name, x in arrays.items()}, put(valid[part])) for part in cut]

    def run_tokens(self, level: LevelConfig, below: WindowTokens, members: Sequence[Sequence[int]], length: int, question: Question) -> WindowTokens:
        """Nested tokens of runs of `below`'s windows. members: of each run, the windows in it (at most `length`)."""
        d = below.summary.shape[-1]
        made = []
        for first in range(0, len(members), level.tokens):
            runs = members[first : first + level.tokens]
            frames = np.zeros((level.tokens, length, d), np.float32)
            seen, valid = np.zeros((level.tokens, length, below.level.shape[-1]), np.float32), np.zeros((level.tokens, length), bool)
            for r, windows in enumerate(runs):
                own = slice(0, len(windows))
                frames[r, own], seen[r, own], valid[r, own] = below.summary[list(windows)], below.level[list(windows)], True
            out = self.run("run tokens", level.name, frames, valid, question.tokens, question.mask, seen)
            made.append([np.asarray(x)[: len(runs)] for x in out])
        return WindowTokens(*(np.concatenate(parts) for parts in zip(*made, strict=True)))

    def window_answers(self, level: LevelConfig, groups: Sequence[tuple[WindowTokens, Question]]) -> tuple[Decoded, int]:
        """Answers over groups of at most `level.tokens` window (or run) tokens, each for its question; and the device calls it took."""
        out, calls = [], 0
        for rows in _batches(list(groups), level):
            token = np.stack([_filled(tokens.token, level.tokens) for tokens, _ in rows.filled])
            seen = np.stack([_filled(tokens.level, level.tokens) for tokens, _ in rows.filled])
            valid = np.stack([np.arange(level.tokens) < len(tokens.level) for tokens, _ in rows.filled])
            made = self.run("window answer", level.name, token, seen, valid, self._questions([q for _, q in rows.filled], level))
            out.append(_host(made, rows.count))
            calls += 1
        return _join(out), calls

    # ---------------------------------------------------------------------------------------------------------------------- frames

    def frame_prefixes(self, level: LevelConfig, arrays: dict, valid, questions: Sequence[Question] | None = None) -> list[dict]:
        """What questions share about windows of frames, one entry a window. arrays: {"frame" [W T E], "tokens" [W T N E]}, valid [W T].

        questions: each window's, where the level's adapter reads it; then nothing is shared.
        An entry holds the KV cache up to the question and what the similarity reads; it stays on the device.
        """
        out = []
        for rows in _batches(list(range(len(valid))), level):
            asked = [None if questions is None else np.stack([getattr(questions[i], name) for i in rows.filled]) for name in ("tokens", "mask")]
            made = self.run("frame prefix", level.name, {name: a[rows.filled] for name, a in arrays.items()}, valid[rows.filled], *asked)
            out += made[: rows.count]
        return out

    def frame_answers(self, level: LevelConfig, rows: Sequence[tuple[dict, Question]]) -> FrameAnswer:
        """Answers about at most `level.batch` windows of frames, each given by its prefix entry, each for its question."""
        (batch,) = _batches(list(rows), level)
        ask = self._questions([q for _, q in batch.filled], level)
        decoded, seen, along = self.run("frame answer", level.name, [entry for entry, _ in batch.filled], ask)
        return FrameAnswer(_host(decoded, batch.count), np.asarray(seen)[: batch.count], np.asarray(along)[: batch.count])

    # --------------------------------------------------------------------------------------------------------------------- patches

    def patch_answers(self, level: LevelConfig, rows: Sequence[tuple[dict, Question]]) -> tuple[Decoded, np.ndarray, int]:
        """Answers about a few seconds of patches, each for its question: (answers, patch tokens dropped by the budget [rows], device calls).

        A row's arrays: {"tokens" [T N E], "change" [T N], "valid" [T]}.
        """
        out, dropped, calls = [], [], 0
        for batch in _batches(list(rows), level):
            tokens, change, valid = (np.stack([arrays[name] for arrays, _ in batch.filled]) for name in ("tokens", "change", "valid"))
            made, lost = self.run("patch answer", level.name, tokens, change, valid, self._questions([q for _, q in batch.filled], level))
            out.append(_host(made, batch.count))
            dropped.append(np.asarray(lost)[: batch.count])
            calls += 1
        return _join(out), np.concatenate(dropped), calls


def _cores() -> int:
    """Of a CPU that calls run on, 1 elsewhere."""
    return (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """`x` with zeros behind its rows, `size` in all."""
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) if len(x) < size else x


class _Batch(NamedTuple):
    filled: list
    count: int  # of them are real


def _batches(rows: list, level: LevelConfig) -> list[_Batch]:
    parts = [rows[i : i + level.batch] for i in range(0, len(rows), level.batch)]
    sizes = [min(size for size in level.batches if size >= len(part)) for part in parts]
    return [_Batch([*part, *[part[-1]] * (size - len(part))], len(part)) for part, size in zip(parts, sizes, strict=True)]


def _host(decoded: Decoded, count: int) -> Decoded:
    return Decoded(*(np.asarray(x)[:count] for x in decoded))


def _join(parts: list[Decoded]) -> Decoded:
    return Decoded(*(np.concatenate(values) for values in zip(*parts, strict=True)))
