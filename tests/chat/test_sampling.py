"""Sampling as transformers defines it: by its own code where torch is installed, and by frequencies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revision_jax.chat.sampling import Sampling, adjusted, pick
from revision_jax.errors import UserError


def logits(rows=3, vocab=50, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, vocab)).astype(np.float32)


def seen_of(ids, vocab=50):
    seen = np.zeros((len(ids), vocab), bool)
    for row, own in enumerate(ids):
        seen[row, own] = True
    return jnp.asarray(seen)


@pytest.mark.torch
@pytest.mark.parametrize("sampling", [
    Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8), Sampling(0.5, 10, 0.6, 1.3), Sampling(0.0, repetition_penalty=1.2),
    Sampling(1.0, top_p=1e-6),
])  # fmt: skip
def test_equals_the_processors_of_transformers(sampling):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    ids = [[1, 2, 3], [4, 4, 5], [6, 7, 49]]
    chain = [theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)] if sampling.repetition_penalty != 1 else []
    if sampling.temperature:
        chain.append(theirs.TemperatureLogitsWarper(sampling.temperature))
        chain += [theirs.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        chain += [theirs.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    expected = torch.tensor(logits())
    for process in chain:
        expected = process(torch.tensor(ids), expected)
    np.testing.assert_allclose(adjusted(jnp.asarray(logits()), seen_of(ids), sampling), expected.numpy(), rtol=1e-6)


def test_top_p_by_hand():
    probabilities = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3]]))
    unseen = jnp.zeros((1, 4), bool)
    kept = lambda p: np.isfinite(np.asarray(adjusted(probabilities, unseen, Sampling(1.0, top_p=p))))[0].tolist()
    assert kept(0.39) == [False, True, False, False]
    assert kept(0.65) == [False, True, False, True]
    assert kept(0.95) == [True, True, True, True]


def test_top_p_draws_with_the_frequencies_of_the_renormalised_nucleus():
    """30,000 draws: every token's share is within four standard deviations, and nothing outside the nucleus is ever drawn."""
    row, draws = logits(1, 20, seed=5), 30_000
    probability = np.exp(row[0].astype(np.float64) / 0.9)
    probability /= probability.sum()
    order = np.argsort(-probability)
    inside = order[: int(np.searchsorted(np.cumsum(probability[order]), 0.8)) + 1]
    expected = np.zeros(20)
    expected[inside] = probability[inside] / probability[inside].sum()
    many = jnp.broadcast_to(jnp.asarray(row), (draws, 20))
    tokens, seen = pick(many, jnp.zeros((draws, 20), bool), jax.random.key(0), Sampling(0.9, top_p=0.8))
    share = np.bincount(np.asarray(tokens), minlength=20) / draws
    assert (share[expected == 0] == 0).all()
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws) + 1e-9).all()
    assert np.asarray(seen).sum() == draws


def test_greedy_ignores_the_key_and_obeys_the_penalty():
    row, unseen = jnp.asarray([[3.0, 2.9, -1.0]]), jnp.zeros((1, 3), bool)
    first, seen = pick(row, unseen, jax.random.key(0), Sampling())
    again, _ = pick(row, unseen, jax.random.key(9), Sampling())
    assert first.tolist() == again.tolist() == [0]
    assert pick(row, seen, jax.random.key(0), Sampling(repetition_penalty=1.5))[0].tolist() == [1]


def test_what_is_wrong_is_told_at_once():
    with pytest.raises(UserError, match=r"temperature .* top_k .* top_p .* repetition_penalty"):
        Sampling(-1.0, -1, 0.0, 0.0)
