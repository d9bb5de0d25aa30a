"""How much a turn needs, checked before anything is allocated: tokens against the budget, and what they are in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from revision_jax.config import DecoderConfig
from revision_jax.data.media import Medium
from revision_jax.errors import UserError

DEFAULT = 20480  # tokens: the 16,384 visual ones that the model was released for, and text


class Need(NamedTuple):
    """Tokens of one turn, before pruning, which only makes them fewer."""

    earlier: int  # turns before this one
    text: int
    shown: tuple[tuple[str, int, int], ...]  # (path, frames, tokens of a frame)
    answer: int

    @property
    def visual(self) -> int:
        return sum(frames * tokens for _, frames, tokens in self.shown)

    @property
    def total(self) -> int:
        return self.earlier + self.text + self.visual + self.answer


def need(earlier: int, text: int, media: Sequence[Medium], patch: int, answer: int) -> Need:
    """What a turn with these media needs."""
    return Need(earlier, text, tuple((medium.path, medium.shape.frames, medium.tokens(patch)) for medium in media), answer)


def cache_bytes(config: DecoderConfig, tokens: int) -> int:
    """Bytes of keys and values of `tokens` slots, all layers."""
    width = np.dtype(np.float32).itemsize if config.dtype == "float32" else 2
    return 2 * config.layers * config.kv_heads * config.head_dim * width * tokens


def check(turn: Need, budget: int, config: DecoderConfig) -> None:
    """Raises UserError where a turn does not fit into the budget: what it needs, what for, and what would help."""
    if turn.total <= budget:
        return
    parts = [f"{path} {frames * tokens:,} ({frames} frames of {tokens})" if frames > 1 else f"{path} {tokens:,}" for path, frames, tokens in turn.shown]
    parts += [f"text {turn.text:,}", *([f"earlier turns {turn.earlier:,}"] if turn.earlier else []), f"answer {turn.answer:,}"]
    size = cache_bytes(config, turn.total) / 2**20
    helps = "fewer frames (max_frames, fps), smaller ones (max_pixels), " if turn.shown else ""
    raise UserError(
        f"token budget: this turn needs {turn.total:,} tokens ({', '.join(parts)}), the budget is {budget:,}; take {helps}"
        f"a shorter answer (max_new_tokens), or raise token_budget: {turn.total:,} tokens are {size:,.0f} MiB of cache"
    )
