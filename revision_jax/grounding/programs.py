"""The compiled programs of a model: a few per level, each with one static shape, whatever the film's length and the number of questions.

    level     program           rows of its batch                      shares between questions
    sparse    window tokens     a group of windows, for one question   nothing: a sparse token is made in the light of the question
    nested    run tokens        a group of runs of sparse summaries    "
    both      window answer     a group of tokens
    dense     frame prefix      a window of frames                     the KV cache up to the question (but with a "temporal" adapter, which reads it)
              frame answer      a window, for one question
    patch     patch answer      a few seconds, for one question

Rows are filled up to `LevelConfig.batch` with copies whose results are dropped. Results come back as NumPy, but for the prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig
from revision_jax.data.prompts import before_ids, clean_query, encode_query, encode_question
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError
from revision_jax.grounding import generate
from revision_jax.grounding.generate import Decoded
from revision_jax.grounding.prompt import Grammar, span_grammar
from revision_jax.models import revision
from revision_jax.models import signal as search_signal
from revision_jax.models.decoder import stack_caches, take_rows

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


class WindowTokens(NamedTuple):
    """Windows as one token each, in the light of a question."""

    token: np.ndarray  # [W H]
    summary: np.ndarray  # [W D], before the last linear: what a nested level reads
    level: np.ndarray  # [W F] similarity to each of the question's vectors


class FrameAnswer(NamedTuple):
    decoded: Decoded  # leading axis: rows
    level: np.ndarray  # [rows T F] similarity of each frame


def number_ids(tokenizer: Tokenizer, config: ExperimentConfig, count: int) -> np.ndarray:
    """Token of each number below `count`, for `decoder.time = "token"`. Raises ConfigError where a number is no token of its own."""
    if config.decoder.time != "token":
        return np.zeros(count, np.int32)
    try:
        return np.asarray([tokenizer.id(str(n)) for n in range(count)], np.int32)
    except KeyError as error:
        raise ConfigError(f"decoder.time: 'token' needs one token for each number below {count}; the tokenizer has none for {error}") from None


class Programs:
    """Holds the state on the device and the compiled functions. `traces` counts what was compiled, by program and level."""

    def __init__(self, config: ExperimentConfig, state: dict, tokenizer: Tokenizer, text_tokenizer: Tokenizer | None = None):
        """text_tokenizer: of the text tower, where it is not the decoder's. Raises ConfigError where config, tokenizers and prompts do not fit together."""
        self.config, self.tokenizer, self.text_tokenizer = config, tokenizer, text_tokenizer or tokenizer
        if tokenizer.vocab_size > config.decoder.vocab:
            raise ConfigError(f"decoder.vocab: {config.decoder.vocab} is below the tokenizer's {tokenizer.vocab_size} tokens")
        if config.text is None:
            raise ConfigError("text: this model has no text tower, which searching needs; python -m launch.chat answers about what fits into its context")
        if self.text_tokenizer.vocab_size > config.text.vocab:
            raise ConfigError(f"text.vocab: {config.text.vocab} is below the {self.text_tokenizer.vocab_size} tokens of the text tower's tokenizer")
        self.state = jax.device_put(state)
        self.traces: dict[tuple[str, str], int] = {}
        self.calls = 0
        self._compiled: dict[tuple[str, str], Callable] = {}
        self._grammars: dict[str, Grammar] = {}
        levels = config.grounding.levels
        self._numbers = jnp.asarray(number_ids(tokenizer, config, max((level.tokens for level in levels), default=1)))
        self.queries: TextFeatureStore | None = None  # features of questions by their text, in place of the text tower
        self._before = {level.name: np.asarray(before_ids(tokenizer, level.prompt), np.int32) for level in levels}
        self.needs_tokens = config.decoder.signal.similarity == "late"
        # A decoder without the search signal may come with towers that do not share a space; then there is no similarity to speak of.
        self.has_similarity = config.vision.output == config.text.projection

    @property
    def names(self) -> tuple[str, ...]:
        """Feature arrays that window and frame levels read."""
        return ("frame", "tokens") if self.needs_tokens else ("frame",)

    def grammar(self, level: LevelConfig) -> Grammar:
        """The level's answer automaton, made when first asked for. Raises ConfigError where `answer_len` cannot hold its answers."""
        if level.name not in self._grammars:
            grammar = span_grammar(self.tokenizer, level.prompt, level.tokens)
            if grammar.steps > self.config.grounding.answer_len:
                has = self.config.grounding.answer_len
                raise ConfigError(f"grounding.answer_len: must be at least {grammar.steps} for the answers of level {level.name!r}, is {has}")
            self._grammars[level.name] = grammar
        return self._grammars[level.name]

    def _program(self, kind: str, name: str, function: Callable) -> Callable:
        key = (kind, name)
        if key not in self._compiled:

            def counted(*args):
                self.traces[key] = self.traces.get(key, 0) + 1  # runs when traced, so it counts compilations
                return function(*args)

            self._compiled[key] = jax.jit(counted)
        return self._compiled[key]

    def _call(self, kind: str, name: str, function: Callable, *args) -> Any:
        self.calls += 1
        return self._program(kind, name, function)(self.state, *args)

    # -------------------------------------------------------------------------------------------------------------------- question

    def question(self, text: str) -> Question:
        """Encodes a question. Raises UserError for an empty one, one that is too long or holds reserved words, and one that `queries` does not hold."""
        config = self.config
        if len(clean_query(text)) > LONGEST_QUERY:  # counted apart from tokens: a word tokenizer takes any run of letters for one
            raise UserError(f"query has {len(text)} characters, at most {LONGEST_QUERY}: {text[:40]!r}...")
        after = {level.name: encode_question(self.tokenizer, level.prompt, text, config.grounding.prompt_len) for level in config.grounding.levels}
        if self.queries is not None:
            return Question(text, *self._stored(text), after)
        ids, mask = encode_query(self.text_tokenizer, text, config.grounding.query_len, config.text.suffix)

        def encode(state: dict, ids, mask) -> dict:
            return revision.encode_text(config, state["params"], ids, mask)

        out = self._call("question", "", encode, ids[None], mask[None])
        motion = None if out["motion"] is None else np.asarray(out["motion"][0])
        return Question(text, np.asarray(out["tokens"][0]), mask, np.asarray(out["vectors"][0]), motion, after)

    def _stored(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """(tokens, mask, vectors, motion) of a question from the store of text features; zeros for vectors that it does not have."""
        config = self.config
        found = self.queries.features(clean_query(text))
        tokens = found["tokens"][: config.grounding.query_len].astype(np.float32)
        fill = config.grounding.query_len - len(tokens)
        vectors = found.get("vectors", np.zeros((1 + config.text.phrases, config.text.projection), np.float32)).astype(np.float32)
        motion = found.get("motion", np.zeros(2, np.float32)).astype(np.float32) if config.text.motion else None
        return np.pad(tokens, ((0, fill), (0, 0))), np.arange(config.grounding.query_len) < len(tokens), vectors, motion

    def _questions(self, questions: Sequence[Question], level: LevelConfig) -> dict[str, np.ndarray]:
        stack = lambda values: np.stack(list(values))
        return {
            "tokens": stack(q.tokens for q in questions), "mask": stack(q.mask for q in questions), "vectors": stack(q.vectors for q in questions),
            "motion": stack(q.motion for q in questions) if self.config.text.motion else None,
            "after_ids": stack(q.after[level.name][0] for q in questions), "after_mask": stack(q.after[level.name][1] for q in questions),
        }

    def _similarity(self, state: dict, frame, tokens, vectors):
        if not self.has_similarity:
            shape = (*frame.shape[:-1], vectors.shape[-2])
            return jnp.zeros(shape), jnp.full((*shape, 2), 0.5)
        return revision.similarity(self.config, state["params"], frame, tokens, vectors)

    def _answer(self, state: dict, level: LevelConfig, visual: revision.Visual, cache: dict, ask: dict, count) -> Decoded:
        grammar = self.grammar(level)
        asked = generate.ask(self.config, state, level.name, cache, visual, ask["after_ids"], ask["after_mask"], grammar.steps)
        return generate.beam(self.config, state, level.name, asked, grammar, count, level.spans)

    # --------------------------------------------------------------------------------------------------------------------- windows

    def window_tokens(self, level: LevelConfig, arrays: dict, valid: Any, question: Question) -> WindowTokens:
        """Sparse tokens of one group of windows, in the light of a question. arrays: {"frame" [W T E], "tokens" [W T N E]}, valid [W T].

        A group is `level.tokens` windows (see `on_device`): the first `windows` of them are wanted.
        """

        def tokens(state: dict, frame, tokens, valid, text, mask, vectors) -> WindowTokens:
            spread = lambda x: jnp.broadcast_to(x, (frame.shape[0], *x.shape))
            token, summary = revision.sparse_tokens(self.config, state, level.name, frame, valid, spread(text), spread(mask))
            seen, _ = self._similarity(state, frame, _clear(tokens, valid), vectors)
            return WindowTokens(token, summary, search_signal.top_mean(seen, valid, self.config.decoder.signal.top))

        made = self._call("window tokens", level.name, tokens, arrays["frame"], arrays.get("tokens"), valid, question.tokens, question.mask, question.vectors)
        return WindowTokens(*map(np.asarray, made))

    @staticmethod
    def on_device(level: LevelConfig, arrays: dict, valid: np.ndarray) -> tuple[dict, jax.Array]:
        """A group's arrays filled up to `level.tokens` windows and moved to the device once for all questions."""
        fill = level.tokens - len(valid)
        put = lambda x: jnp.asarray(np.concatenate([x, np.zeros((fill, *x.shape[1:]), x.dtype)]) if fill else x)
        return {name: put(x) for name, x in arrays.items()}, put(valid)

    def run_tokens(self, level: LevelConfig, below: WindowTokens, members: Sequence[Sequence[int]], length: int, question: Question) -> WindowTokens:
        """Nested tokens of runs of `below`'s windows. members: of each run, the windows in it (at most `length`)."""
        d = below.summary.shape[-1]

        def tokens(state: dict, frames, valid, text, mask, seen) -> WindowTokens:
            spread = lambda x: jnp.broadcast_to(x, (frames.shape[0], *x.shape))
            token, summary = revision.sparse_tokens(self.config, state, level.name, frames, valid, spread(text), spread(mask))
            return WindowTokens(token, summary, search_signal.top_mean(seen, valid, 1))

        made = []
        for first in range(0, len(members), level.tokens):
            part = members[first : first + level.tokens]
            frames = np.zeros((level.tokens, length, d), np.float32)
            seen, valid = np.zeros((level.tokens, length, below.level.shape[-1]), np.float32), np.zeros((level.tokens, length), bool)
            for r, windows in enumerate(part):
                own = slice(0, len(windows))
                frames[r, own], seen[r, own], valid[r, own] = below.summary[list(windows)], below.level[list(windows)], True
            out = self._call("run tokens", level.name, tokens, frames, valid, question.tokens, question.mask, seen)
            made.append([np.asarray(x)[: len(part)] for x in out])
        return WindowTokens(*(np.concatenate(parts) for parts in zip(*made, strict=True)))

    def window_answers(self, level: LevelConfig, groups: Sequence[tuple[WindowTokens, Question]]) -> tuple[Decoded, int]:
        """Answers over groups of at most `level.tokens` window (or run) tokens, each for its question; and the device calls it took."""

        def answer(state: dict, token, seen, valid, ask: dict) -> Decoded:
            visual = revision.window_visual(self.config, state, level.name, token, valid, self._numbers, search_signal.Match(seen, None, ask["motion"]))
            cache = generate.prefix(self.config, state, level.name, self._before[level.name], visual)
            return self._answer(state, level, visual, cache, ask, jnp.sum(valid, 1))

        out, calls = [], 0
        for rows in _batches(list(groups), level.batch):
            fill = lambda x: np.concatenate([x, np.zeros((level.tokens - len(x), *x.shape[1:]), x.dtype)])
            token = np.stack([fill(tokens.token) for tokens, _ in rows.filled])
            seen = np.stack([fill(tokens.level) for tokens, _ in rows.filled])
            valid = np.stack([np.arange(level.tokens) < len(tokens.level) for tokens, _ in rows.filled])
            made = self._call("window answer", level.name, answer, token, seen, valid, self._questions([q for _, q in rows.filled], level))
            out.append(_host(made, rows.count))
            calls += 1
        return _join(out), calls

    # ---------------------------------------------------------------------------------------------------------------------- frames

    def frame_prefixes(self, level: LevelConfig, arrays: dict, valid, questions: Sequence[Question] | None = None) -> list[dict]:
        """What questions share about windows of frames, one entry a window. arrays: {"frame" [W T E], "tokens" [W T N E]}, valid [W T].

        questions: each window's, where the level's adapter reads it; then nothing is shared.
        An entry holds the KV cache up to the question and what the similarity reads; it stays on the device.
        """

        def prefixes(state: dict, arrays: dict, valid, query, query_mask) -> list[dict]:
            visual = revision.dense_visual(self.config, state, level.name, arrays["frame"], valid, self._numbers, None, query, query_mask)
            cache = generate.prefix(self.config, state, level.name, self._before[level.name], visual)
            name = "tokens" if self.needs_tokens else "frame"
            read = _clear(arrays[name], valid)
            return [{"cache": take_rows(cache, slice(i, i + 1)), "valid": valid[i], name: read[i]} for i in range(level.batch)]

        out = []
        for rows in _batches(list(range(len(valid))), level.batch):
            asked = [None if questions is None else np.stack([getattr(questions[i], name) for i in rows.filled]) for name in ("tokens", "mask")]
            made = self._call("frame prefix", level.name, prefixes, {name: a[rows.filled] for name, a in arrays.items()}, valid[rows.filled], *asked)
            out += made[: rows.count]
        return out

    def frame_answers(self, level: LevelConfig, rows: Sequence[tuple[dict, Question]]) -> FrameAnswer:
        """Answers about at most `level.batch` windows of frames, each given by its prefix entry, each for its question."""

        def answer(state: dict, entries: list[dict], ask: dict) -> tuple[Decoded, Any]:
            cache = stack_caches([entry["cache"] for entry in entries])
            valid = jnp.stack([entry["valid"] for entry in entries])
            if self.needs_tokens:
                # The visual tokens are in the cache already: zeros stand for the frame vectors, which this similarity does not read.
                frame, tokens = jnp.zeros((*valid.shape, level.adapter.width)), jnp.stack([entry["tokens"] for entry in entries])
            else:
                frame, tokens = jnp.stack([entry["frame"] for entry in entries]), None
            seen, where = self._similarity(state, frame, tokens, ask["vectors"][:, None])
            match = search_signal.Match(seen, where, ask["motion"])
            visual = revision.dense_visual(self.config, state, level.name, frame, valid, self._numbers, match, ask["tokens"], ask["mask"])
            return self._answer(state, level, visual, cache, ask, jnp.sum(valid, 1)), jnp.where(valid[..., None], seen, 0.0)

        (batch,) = _batches(list(rows), level.batch)
        ask = self._questions([q for _, q in batch.filled], level)
        decoded, seen = self._call("frame answer", level.name, answer, [entry for entry, _ in batch.filled], ask)
        return FrameAnswer(_host(decoded, batch.count), np.asarray(seen)[: batch.count])

    # --------------------------------------------------------------------------------------------------------------------- patches

    def patch_answers(self, level: LevelConfig, rows: Sequence[tuple[dict, Question]]) -> tuple[Decoded, np.ndarray, int]:
        """Answers about a few seconds of patches, each for its question: (answers, patch tokens dropped by the budget [rows], device calls).

        A row's arrays: {"tokens" [T N E], "change" [T N], "valid" [T]}.
        """

        def answer(state: dict, tokens, change, valid, ask: dict) -> tuple[Decoded, Any]:
            vectors = ask["vectors"] if self.has_similarity else None
            visual, dropped = revision.patch_visual(self.config, state, level.name, tokens, change, valid, self._numbers, vectors, ask["motion"])
            cache = generate.prefix(self.config, state, level.name, self._before[level.name], visual)
            return self._answer(state, level, visual, cache, ask, jnp.sum(valid, 1)), dropped

        out, dropped, calls = [], [], 0
        for part in _batches(list(rows), level.batch):
            tokens, change, valid = (np.stack([arrays[name] for arrays, _ in part.filled]) for name in ("tokens", "change", "valid"))
            made, lost = self._call("patch answer", level.name, answer, tokens, change, valid, self._questions([q for _, q in part.filled], level))
            out.append(_host(made, part.count))
            dropped.append(np.asarray(lost)[: part.count])
            calls += 1
        return _join(out), np.concatenate(dropped), calls


class _Batch(NamedTuple):
    filled: list
    count: int  # of them are real


def _batches(rows: list, size: int) -> list[_Batch]:
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [_Batch([*part, *[part[-1]] * (size - len(part))], len(part)) for part in parts]


def _clear(array, valid):
    """Zeros where there is no frame: a weight of zero does not silence a NaN."""
    return None if array is None else jnp.where(valid.reshape(*valid.shape, *[1] * (array.ndim - valid.ndim)), array, 0)


def _host(decoded: Decoded, count: int) -> Decoded:
    return Decoded(*(np.asarray(x)[:count] for x in decoded))


def _join(parts: list[Decoded]) -> Decoded:
    return Decoded(*(np.concatenate(values) for values in zip(*parts, strict=True)))
