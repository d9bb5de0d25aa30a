"""Queries, prompts and answers as fixed-length id arrays.

A prompt is `before` + visual tokens + `after` + answer. The two texts are tokenised apart, so everything up to the question is the same for every
question of a video (its KV cache is shared), and the visual tokens take the place between them. Source: ReVisionLLM, section 3 and its released
template. Raises UserError where a query cannot be used, ConfigError where a configured length cannot hold a configured text. Arrays are read-only.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Int

from revision_jax.config import ConfigError, PromptConfig
from revision_jax.data.tokenizer import Tokenizer
from revision_jax.errors import UserError

Answer = tuple[int | np.integer, int | np.integer] | bool | np.bool_ | None  # (first, last) number; yes or no; not present
KEPT = 4096  # texts that are remembered: a question is asked about several windows, one after the other
Padded = tuple[Int[np.ndarray, "S"], Bool[np.ndarray, "S"]]  # ids (padded on the right), and which of them are real


def clean_query(text: str) -> str:
    """Lower case, blanks collapsed, no final period. Raises UserError for an empty query."""
    query = " ".join(text.lower().split()).rstrip(". ")
    if not query:
        raise UserError("query is empty; say in a sentence what to look for")
    return query


@functools.lru_cache(maxsize=KEPT)
def encode_query(tokenizer: Tokenizer, text: str, length: int, suffix: str = "", cut: bool = False) -> Padded:
    """A query for the text tower: start token, words, `suffix`, end token; int32 ids [length] and their mask. Raises UserError if empty or too long.

    cut: one that is too long loses its end instead, as captions do.
    """
    query = _checked(tokenizer, text) + suffix
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    room = length - len(start) - 1
    ids = tokenizer.encode(query)
    if len(ids) > room and not cut:
        raise UserError(f"query has {len(ids)} tokens, at most {room}: {_short(query)!r}")
    return _pad(tokenizer, [*start, *ids[:room], tokenizer.eos], length)


def question(prompt: PromptConfig, query: str, presence: bool = False) -> str:
    """The text after the visual tokens; `presence` asks the yes/no question of stage 1-B."""
    return (prompt.presence if presence else prompt.after).replace("{query}", query)


@functools.lru_cache(maxsize=KEPT)
def encode_question(tokenizer: Tokenizer, prompt: PromptConfig, text: str, length: int, presence: bool = False) -> Padded:
    """The text after the visual tokens, which asks about a query: ids and mask [length]. Raises UserError if the query is empty or too long."""
    query = _checked(tokenizer, text)
    after = tokenizer.encode(question(prompt, query, presence))
    if len(after) > length:
        own = len(tokenizer.encode(query))
        room = length - (len(after) - own)
        if room < 1:
            raise ConfigError(f"grounding.prompt_len: must be above {len(after) - own}, the tokens of the question around the query, is {length}")
        raise UserError(f"query has {own} tokens, at most {room}: {_short(query)!r}")
    return _pad(tokenizer, after, length)


def before_ids(tokenizer: Tokenizer, prompt: PromptConfig) -> list[int]:
    """Ids in front of the visual tokens: the start token, where the vocabulary has one, and `prompt.before`."""
    return [*([] if tokenizer.bos is None else [tokenizer.bos]), *(tokenizer.encode(prompt.before) if prompt.before else [])]


def answer_text(prompt: PromptConfig, answer: Answer) -> str:
    """The answer's exact string: (first, last) numbers, True / False for yes / no, None for not present.

    Numbers always mean the first and the last one that count; where `prompt.end` is "exclusive" the text names the one behind the last, where it is
    "single" the first one alone.
    """
    if answer is None:
        return prompt.absent
    if isinstance(answer, (bool, np.bool_)):
        return prompt.yes if answer else prompt.no
    first, last = answer
    start, end = (str(int(number)).zfill(prompt.digits) for number in (first, last + (prompt.end == "exclusive")))
    return prompt.answer.replace("{start}", start).replace("{end}", end)


@functools.lru_cache(maxsize=KEPT)
def encode_answer(tokenizer: Tokenizer, prompt: PromptConfig, answer: Answer, length: int) -> Padded:
    """The answer's ids, end token last; int32 [length] and their mask. Raises ConfigError if `length` cannot hold it."""
    text = answer_text(prompt, answer)
    ids = [*tokenizer.encode(text), tokenizer.eos]
    if len(ids) > length:
        raise ConfigError(f"grounding.answer_len: must be at least {len(ids)} for {text!r} and the end token, is {length}")
    return _pad(tokenizer, ids, length)


def _checked(tokenizer: Tokenizer, text: str) -> str:
    query = clean_query(text)
    for special in tokenizer.specials:
        # Tokenizers turn such text into the control token itself: a query could end its own prompt.
        if special.lower() in query:
            raise UserError(f"query contains {special}, which is reserved; leave it out")
    return query


def _pad(tokenizer: Tokenizer, ids: list[int], length: int) -> Padded:
    padded = np.asarray([*ids, *[tokenizer.pad] * (length - len(ids))], np.int32)
    mask = np.arange(length) < len(ids)
    padded.flags.writeable = mask.flags.writeable = False  # they are handed out again
    return padded, mask


def _short(query: str) -> str:
    return query if len(query) <= 60 else query[:57] + "..."
