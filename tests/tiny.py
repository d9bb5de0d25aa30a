"""A config small enough for tests, with every kind of level, and its first state."""

import functools

import jax

from revision_jax.config import (
    AdapterConfig,
    DecoderConfig,
    ExperimentConfig,
    GroundingConfig,
    LevelConfig,
    LoraConfig,
    PrunerConfig,
    SignalConfig,
    TextConfig,
    VisionConfig,
)
from revision_jax.models.revision import init_state

WIDTH = 16


def config() -> ExperimentConfig:
    sparse = AdapterConfig(kind="sparse", width=WIDTH, heads=2, mlp=24, text_layers=1, self_layers=1, dropout=0.0)
    dense, projector = AdapterConfig(kind="dense", width=WIDTH), AdapterConfig(kind="mlp", width=WIDTH)
    return ExperimentConfig(
        name="test",
        vision=VisionConfig(width=16, layers=1, heads=2, mlp=24, patch=4, grids=((4, 4),), merge=2, projection=WIDTH),
        text=TextConfig(vocab=300, width=WIDTH, layers=1, heads=2, mlp=24, max_len=12, projection=WIDTH, activation="gelu_tanh", phrases=4, motion=True),
        pruner=PrunerConfig(threshold=2.0, budgets=(8, 16)),
        decoder=DecoderConfig(
            vocab=300, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32, qkv_bias=True, tie_embeddings=True,
            lora=LoraConfig(rank=4, alpha=8.0, dropout=0.0), time="token",
            signal=SignalConfig(enabled=True, similarity="late", channels=("level", "square", "rise", "fall"), cues=True, init=1.0),
        ),
        grounding=GroundingConfig(
            levels=(
                LevelConfig(name="sparse", kind="sparse", span_s=8.0, stride_s=4.0, tokens=10, frames=4, batch=1, beam=3, spans=3, adapter=sparse),
                LevelConfig(name="dense", kind="dense", span_s=12.0, stride_s=6.0, tokens=12, batch=4, spans=2, adapter=dense),
                LevelConfig(name="patch", kind="patch", span_s=2.0, stride_s=2.0, tokens=8, batch=4, spans=1, budget=16, adapter=projector),
            ),
            query_len=12, prompt_len=10, answer_len=6,
        ),
    )  # fmt: skip


@functools.cache
def state(seed: int = 0) -> dict:
    """Compiled as one program: operation by operation it takes a minute."""
    return jax.jit(lambda: init_state(config(), jax.random.key(seed)))()
