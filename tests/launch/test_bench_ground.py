"""`launch.bench ground` at toy size: both sides must be the same model, which it checks itself; the counts are the released procedure's."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from launch.benches import ground as bench
from launch.benches.tokens import released_calls
from revision_jax.config import DecoderConfig
from revision_jax.errors import UserError

SMALL = DecoderConfig(vocab=128, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, tie_embeddings=True)


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name, value in {"SIZES": {"small": (SMALL, 1)}, "FILM_S": 400.0, "MANY": 2, "LIMIT": 20}.items():
        monkeypatch.setattr(bench, name, value)
    by_turns = bench.by_turns
    monkeypatch.setattr(bench, "by_turns", lambda makers, repeats=1, warm=False: by_turns(makers, 1, warm))


def test_the_released_calls_by_hand():
    # An hour is 18,000 features: 57 dense windows, 143 sparse ones, in groups of 25, 50, 100 and of 8, 16, 33.
    assert released_calls(18000) == {"dense": 57, "sparse-100": 6 + 3 + 2, "sparse-33": 18 + 9 + 5, "windows": 143}


@pytest.mark.torch
@pytest.mark.slow
def test_every_way_is_measured(small):
    figures = bench.ground(argparse.Namespace())
    parts = [value for name, value in figures.items() if name.startswith("small: released, of it")]
    assert len(parts) == 5 and min(parts) > 0
    whole = figures["small: released, one question, scaled from 1 batch of each kind (s)"]
    assert whole == pytest.approx(sum(parts))
    assert figures["small: one question, times as fast as released"] == pytest.approx(whole / figures["small: ours, one question (s)"])
    longest = figures["small: released at its limit of 20 tokens, one question, scaled from one batch (s)"]
    at_limit = figures["small: one question, times as fast as released at its limit (scaled from one batch)"]
    assert at_limit == pytest.approx(longest / figures["small: ours, one question (s)"])
    assert figures["small: released, one question: calls of the language model"] == sum(released_calls(2000).values()) - released_calls(2000)["windows"]


@pytest.mark.torch
def test_another_model_is_found_out(small):
    programs, film, theirs = bench.both(bench.sized(SMALL))
    bench.agree(programs, film, theirs)
    theirs.model.lm_head.weight.data += 0.01
    with pytest.raises(UserError, match="the logits of a dense window differ"):
        bench.agree(programs, film, theirs)
    theirs.adapters["sparse-100"]["global_rep_token"] += 1.0
    with pytest.raises(UserError, match="the sparse tokens differ"):
        bench.agree(programs, film, theirs)
    assert np.isfinite(film.arrays["frame"]).all()
