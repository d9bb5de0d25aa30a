"""What is traced: the functions behind the programs, each of (level, state, arrays). `programs.py` batches for them and keeps them compiled."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from revision_jax.config import ConfigError, ExperimentConfig, LevelConfig
from revision_jax.data.prompts import before_ids
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.grounding import generate
from revision_jax.grounding.generate import Decoded
from revision_jax.grounding.prompt import Grammar, span_grammar
from revision_jax.models import revision
from revision_jax.models import signal as search_signal
from revision_jax.models.cache import stack_caches, take_rows


class WindowTokens(NamedTuple):
    """Windows as one token each, in the light of a question."""

    token: Float[Array, "W H"]
    summary: Float[Array, "W D"]  # before the last linear: what a nested level reads
    level: Float[Array, "W F"]  # similarity to each of the question's vectors


# An exported program names the tree of its results (`stored_programs`).
for kind in (Decoded, WindowTokens):
    jax.export.register_namedtuple_serialization(kind, serialized_name=f"revision_jax.{kind.__name__}")


class LevelFunctions:
    """The functions of one model: pure, but for the tables that they close over, which config and tokenizer make. `state` is `level_state` of it, or all.

    An `ask` is what a batch of B questions shows the decoder: {"tokens" [B S D], "mask" [B S], "vectors" [B F E], "motion" [B 2] or None, "after_ids" and
    "after_mask" [B S], the text behind the visual tokens}.
    """

    def __init__(self, config: ExperimentConfig, tokenizer: Tokenizer):
        """Raises ConfigError where config, tokenizer and prompts do not fit together."""
        self.config, self.tokenizer = config, tokenizer
        levels = config.grounding.levels
        self.numbers = number_ids(tokenizer, config, max((level.tokens for level in levels), default=1))
        self.before = {level.name: np.asarray(before_ids(tokenizer, level.prompt), np.int32) for level in levels}
        self.needs_tokens = config.decoder.signal.similarity == "late"
        # A decoder without the search signal may come with towers that do not share a space; then there is no similarity to speak of.
        self.has_similarity = config.vision.output == config.text.projection
        self._grammars: dict[str, Grammar] = {}

    @property
    def by_kind(self) -> dict[str, Callable]:
        """The function of each kind of program; but for the first two they also take a level."""
        return {
            "question": self.question, "frame levels": self.frame_levels, "window tokens": self.window_tokens, "run tokens": self.run_tokens,
            "window answer": self.window_answer, "frame prefix": self.frame_prefix, "frame answer": self.frame_answer, "patch answer": self.patch_answer,
        }  # fmt: skip

    @functools.cached_property
    def identity(self) -> str:
        """Tells these functions from those of another config or tokenizer; weights are arguments and no part of it."""
        parts = ("vision", "patch_vision", "text", "pruner", "decoder", "grounding")
        values = self.config.to_dict()
        return json.dumps([{name: values[name] for name in parts}, self.tokenizer.identity], sort_keys=True)

    def grammar(self, level: LevelConfig) -> Grammar:
        """The level's answer automaton, made when first asked for. Raises ConfigError where `answer_len` cannot hold its answers."""
        if level.name not in self._grammars:
            grammar = span_grammar(self.tokenizer, level.prompt, level.tokens)
            if grammar.steps > self.config.grounding.answer_len:
                has = self.config.grounding.answer_len
                raise ConfigError(f"grounding.answer_len: must be at least {grammar.steps} for the answers of level {level.name!r}, is {has}")
            self._grammars[level.name] = grammar
        return self._grammars[level.name]

    # -------------------------------------------------------------------------------------------------------------------- question

    def question(self, state: dict, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> dict:
        return revision.encode_text(self.config, state["params"], ids, mask)

    def similarity(self, state: dict, frame, tokens, vectors) -> tuple[Array, Array]:
        """`revision.similarity`; zeros where the towers share no space."""
        if not self.has_similarity:
            shape = (*frame.shape[:-1], vectors.shape[-2])
            return jnp.zeros(shape), jnp.full((*shape, 2), 0.5)
        return revision.similarity(self.config, state["params"], frame, tokens, vectors)

    def frame_levels(self, state: dict, frame: Float[Array, "T E"], tokens: Float[Array, "T N E"] | None, vector: Float[Array, "1 1 E"]) -> Float[Array, "T"]:
        """Similarity of frames to a whole question."""
        return self.similarity(state, frame, tokens, vector)[0][..., 0]

    # --------------------------------------------------------------------------------------------------------------------- windows

    def window_tokens(self, level: LevelConfig, state: dict, frame, tokens, valid, text, mask, vectors) -> WindowTokens:
        """A group of windows, each as one token. frame [W T E], tokens [W T N E] or None, valid [W T]; the question's text [S D], mask [S], vectors [F E]."""
        spread = lambda x: jnp.broadcast_to(x, (frame.shape[0], *x.shape))
        token, summary = revision.sparse_tokens(self.config, state, level.name, frame, valid, spread(text), spread(mask))
        seen, _ = self.similarity(state, frame, _clear(tokens, valid), vectors)
        return WindowTokens(token, summary, search_signal.top_mean(seen, valid, self.config.decoder.signal.top))

    def run_tokens(self, level: LevelConfig, state: dict, summaries, valid, text, mask, seen) -> WindowTokens:
        """Runs of windows, each as one token. summaries [W T D] of the windows below, seen [W T F] their similarity, valid [W T]."""
        spread = lambda x: jnp.broadcast_to(x, (summaries.shape[0], *x.shape))
        token, summary = revision.sparse_tokens(self.config, state, level.name, summaries, valid, spread(text), spread(mask))
        return WindowTokens(token, summary, search_signal.top_mean(seen, valid, 1))

    def window_answer(self, level: LevelConfig, state: dict, token, seen, valid, ask: dict) -> Decoded:
        """Which windows of B groups. token [B W H], seen [B W F], valid [B W]."""
        match = search_signal.Match(seen, None, ask["motion"])
        visual = revision.window_visual(self.config, state, level.name, token, valid, self._numbers, match)
        return self._answer(level, state, visual, None, ask, jnp.sum(valid, 1))

    # ---------------------------------------------------------------------------------------------------------------------- frames

    def frame_prefix(self, level: LevelConfig, state: dict, arrays: dict, valid, query, query_mask) -> list[dict]:
        """What questions share about B windows of frames, an entry each: KV cache up to the question [1 A+T G d], valid [T], and what the similarity reads.

        arrays: {"frame" [B T E], "tokens" [B T N E]}. query [B S D] and its mask, where the level's adapter reads them; else None.
        """
        visual = revision.dense_visual(self.config, state, level.name, arrays["frame"], valid, self._numbers, None, query, query_mask)
        cache = generate.prefix(self.config, state, level.name, self.before[level.name], visual)
        name = "tokens" if self.needs_tokens else "frame"
        read = _clear(arrays[name], valid)
        return [{"cache": take_rows(cache, slice(i, i + 1)), "valid": valid[i], name: read[i]} for i in range(len(valid))]

    def frame_answer(self, level: LevelConfig, state: dict, entries: list[dict], ask: dict) -> tuple[Decoded, Float[Array, "B T F"], Float[Array, "B T"]]:
        """Which frames of B windows, each given by its entry of `frame_prefix`; how the frames match the question; and how far along the way that the question
        says its subject lies, in shares of the frame (zeros where the text tower says no way)."""
        cache = stack_caches([entry["cache"] for entry in entries])
        valid = jnp.stack([entry["valid"] for entry in entries])
        if self.needs_tokens:
            # The visual tokens are in the cache already: zeros stand for the frame vectors, which this similarity does not read.
            frame, tokens = jnp.zeros((*valid.shape, level.adapter.width)), jnp.stack([entry["tokens"] for entry in entries])
        else:
            frame, tokens = jnp.stack([entry["frame"] for entry in entries]), None
        seen, where = self.similarity(state, frame, tokens, ask["vectors"][:, None])
        match = search_signal.Match(seen, where, ask["motion"])
        visual = revision.dense_visual(self.config, state, level.name, frame, valid, self._numbers, match, ask["tokens"], ask["mask"])
        along = jnp.zeros(valid.shape) if ask["motion"] is None else search_signal.agreement(search_signal.of_subject(where), ask["motion"])
        answered = self._answer(level, state, visual, cache, ask, jnp.sum(valid, 1))
        return answered, jnp.where(valid[..., None], seen, 0.0), jnp.where(valid, along, 0.0)

    # --------------------------------------------------------------------------------------------------------------------- patches

    def patch_answer(self, level: LevelConfig, state: dict, tokens, change, valid, ask: dict) -> tuple[Decoded, Int[Array, "B"]]:
        """Which frames of a few seconds, B of them, and how many tokens the budget dropped. tokens [B T N E], change [B T N], valid [B T]."""
        vectors = ask["vectors"] if self.has_similarity else None
        visual, dropped = revision.patch_visual(self.config, state, level.name, tokens, change, valid, self._numbers, vectors, ask["motion"])
        return self._answer(level, state, visual, None, ask, jnp.sum(valid, 1)), dropped

    # ----------------------------------------------------------------------------------------------------------------------- parts

    @property
    def _numbers(self) -> Int[Array, "M"]:
        return jnp.asarray(self.numbers)

    def _answer(self, level: LevelConfig, state: dict, visual: revision.Visual, prefix: dict | None, ask: dict, count) -> Decoded:
        """prefix: the cache up to the question, where questions share it."""
        grammar = self.grammar(level)
        rest = (visual, ask["after_ids"], ask["after_mask"], grammar.slots, grammar.token[grammar.opening])
        if prefix is None:
            asked = generate.prompt(self.config, state, level.name, self.before[level.name], *rest)
        else:
            asked = generate.ask(self.config, state, level.name, prefix, *rest)
        return generate.beam(self.config, state, level.name, asked, grammar, count, level.spans)[0]


def level_state(state: dict, level: str = "") -> dict:
    """What the programs of a level read of the state, or those of no level: the fewer arguments, the sooner a stored program is ready."""
    names = ("decoder", "similarity") if level else ("text", "similarity")
    params = {name: state["params"][name] for name in names if name in state["params"]}
    return {"params": params, **({name: state[name] for name in (f"adapter/{level}", f"lora/{level}")} if level else {})}


def number_ids(tokenizer: Tokenizer, config: ExperimentConfig, count: int) -> np.ndarray:
    """Token of each number below `count`, for `decoder.time = "token"`. Raises ConfigError where a number is no token of its own."""
    if config.decoder.time != "token":
        return np.zeros(count, np.int32)
    try:
        return np.asarray([tokenizer.id(str(n)) for n in range(count)], np.int32)
    except KeyError as error:
        raise ConfigError(f"decoder.time: 'token' needs one token for each number below {count}; the tokenizer has none for {error}") from None


def _clear(array: Any, valid: Any) -> Any:
    """Zeros where there is no frame: a weight of zero does not silence a NaN."""
    return None if array is None else jnp.where(valid.reshape(*valid.shape, *[1] * (array.ndim - valid.ndim)), array, 0)
