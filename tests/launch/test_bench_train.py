"""`launch.bench train` at toy size: its two programs must take the same step, which it checks itself, before any time counts."""

import pytest

from launch.benches import train as bench_train
from revision_jax.config import DecoderConfig
from revision_jax.errors import UserError

SMALL = DecoderConfig(vocab=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, scan=False)


@pytest.mark.torch
@pytest.mark.slow
def test_both_take_the_same_step(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    seconds = bench_train.steps(SMALL, 2, 24, 4, repeats=2, compiled=False)
    assert set(seconds) == {"ours", "PyTorch eager"} and all(len(values) == 2 for values in seconds.values())
    ours = bench_train._ours
    monkeypatch.setattr(bench_train, "_ours", lambda decoder, weights, ids, answer: ours(decoder, weights, ids, answer + 1))
    with pytest.raises(UserError, match="not the same step"):
        bench_train.steps(SMALL, 2, 24, 4, repeats=1, compiled=False)
