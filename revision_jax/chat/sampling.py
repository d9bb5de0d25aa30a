"""From logits to the next token, as transformers defines it: repetition penalty first, then temperature, top-k and top-p.

Source: transformers `generation/logits_process.py` (RepetitionPenalty, Temperature, TopK and TopP), whose order and ties these functions follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from revision_jax.errors import UserError

NEVER = float("-inf")


@dataclass(frozen=True)
class Sampling:
    """How a token is picked. Temperature 0 is greedy: the likeliest after the penalty. top_k 0 and top_p 1 leave everything in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        wrong = []
        if not self.temperature >= 0:
            wrong.append(f"temperature must not be negative, is {self.temperature}")
        if self.top_k < 0:
            wrong.append(f"top_k must not be negative, is {self.top_k}")
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p must lie in (0, 1], is {self.top_p}")
        if not self.repetition_penalty > 0:
            wrong.append(f"repetition_penalty must be above 0, is {self.repetition_penalty}")
        if wrong:
            raise UserError(f"sampling: {'; '.join(wrong)}")


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits of tokens that were seen, prompt included, divided by `penalty` where positive and multiplied by it where negative."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The k largest stay, and what equals the smallest of them; all others become -inf."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < least, NEVER, logits)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The smallest set of likeliest tokens whose probabilities sum to at least `p` stays; the likeliest one always does.

    Among equals the one with the larger number goes in first, as in an ascending stable sort that is cut from below.
    """
    order = jnp.argsort(logits, axis=-1, stable=True)
    mass = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1)  # of this token and all less likely ones
    out = (mass <= 1.0 - p).at[..., -1].set(False)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(out, rank, -1), NEVER, logits)


def adjusted(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """The logits that tokens are drawn from (or, at temperature 0, that the largest is taken of), float32."""
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1.0:
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = top_k(logits, sampling.top_k)
    return top_p(logits, sampling.top_p) if sampling.top_p < 1 else logits


def pick(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], key: Array, sampling: Sampling) -> tuple[Int[Array, "B"], Bool[Array, "B V"]]:
    """(next token of each row, `seen` with it). `key` is not used at temperature 0."""
    chosen = adjusted(logits, seen, sampling)
    token = jnp.argmax(chosen, -1) if sampling.temperature == 0 else jax.random.categorical(key, chosen, axis=-1)
    return token.astype(jnp.int32), seen.at[jnp.arange(len(token)), token].set(True)
