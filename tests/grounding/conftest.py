"""A whole model with very small numbers and random weights, and films of random features."""

from __future__ import annotations

import numpy as np
import pytest

from revision_jax.config import (
    AdapterConfig,
    DecoderConfig,
    ExperimentConfig,
    GroundingConfig,
    LevelConfig,
    LoraConfig,
    PromptConfig,
    PrunerConfig,
    SignalConfig,
    TextConfig,
    VisionConfig,
)
from revision_jax.data.tokenizer import Tokenizer, build_word_tokenizer
from revision_jax.grounding.source import ArraySource

WIDTH = 16
TOKENS = 4  # of a frame
WORDS = [
    "during which frames can we see a red ring ?", "during which video can we see a blue square ?", "does it happen in the video ?",
    "from 0 to 1 .", "not present .", "yes .", "no .", "a green star turns yellow while small circles pass behind the big one",
]


def small_config(**grounding) -> ExperimentConfig:
    sparse = AdapterConfig(kind="sparse", width=WIDTH, heads=2, mlp=32, dropout=0.0)
    windows = PromptConfig(after="during which video can we see {query} ?")
    dense, patch = AdapterConfig(kind="dense", width=WIDTH), AdapterConfig(kind="mlp", width=WIDTH)
    group = {"adapter": sparse, "prompt": windows}
    levels = (
        LevelConfig(name="nested", kind="nested", span_s=120.0, stride_s=120.0, tokens=8, batch=1, beam=3, spans=3, min_duration_s=1800.0, **group),
        LevelConfig(name="sparse", kind="sparse", span_s=20.0, stride_s=10.0, tokens=12, frames=5, batch=2, beam=4, spans=4, **group),
        LevelConfig(name="dense", kind="dense", span_s=40.0, stride_s=20.0, tokens=40, batch=4, beam=3, spans=3, adapter=dense),
        LevelConfig(name="patch", kind="patch", span_s=4.0, stride_s=4.0, tokens=8, batch=4, beam=2, spans=1, budget=16, adapter=patch),
    )
    return ExperimentConfig(
        name="small",
        vision=VisionConfig(width=16, layers=1, heads=2, mlp=32, patch=8, grids=((4, 4),), merge=2, projection=WIDTH),
        text=TextConfig(vocab=320, width=WIDTH, layers=1, heads=2, mlp=32, max_len=16, projection=WIDTH, activation="gelu_tanh", phrases=2),
        pruner=PrunerConfig(threshold=0.5, budgets=(16,)),
        decoder=DecoderConfig(
            vocab=320, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64, qkv_bias=True, tie_embeddings=True,
            lora=LoraConfig(rank=4, alpha=8.0, dropout=0.0),
            signal=SignalConfig(enabled=True, similarity="late", channels=("level", "square", "rise", "fall"), cues=True, init=1.0), time="token",
        ),
        grounding=GroundingConfig(**({"levels": levels, "rate": 1.0, "query_len": 16, "prompt_len": 20, "answer_len": 8} | grounding)),
    )


def noisy_state(config: ExperimentConfig, seed: int = 0) -> dict:
    """A random state in which everything matters, LoRA pairs and signal too. From shapes alone: initialising for real compiles for longer than the tests."""
    from revision_jax import paths
    from revision_jax.models.revision import abstract_state

    rng = np.random.default_rng(seed)

    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(size=shape)
        if name.endswith("similarity/scale"):
            noise = np.log(10.0)
        elif name.endswith("similarity/bias"):
            noise = -3.0
        elif "norm" in name and name.endswith(("scale", "weight")):
            noise = 1.0 + 0.1 * noise
        elif len(shape) >= 2 and "embedding" not in name:
            noise = noise * shape[-2] ** -0.5
        return np.asarray(noise, np.float32)

    return paths.unflatten({name: fill(name, leaf.shape) for name, leaf in paths.flatten(abstract_state(config)).items()})


def random_film(duration_s: float, seed: int = 0, rate: float = 1.0) -> ArraySource:
    rng = np.random.default_rng(seed)
    count = int(np.ceil(duration_s * rate))
    arrays = {
        "frame": rng.normal(size=(count, WIDTH)).astype(np.float16), "tokens": rng.normal(size=(count, TOKENS, WIDTH)).astype(np.float16),
        "change": rng.uniform(0, 2, size=(count, TOKENS)).astype(np.float16),
    }
    return ArraySource(arrays, rate, duration_s, key=f"film-{seed}-{duration_s}")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return build_word_tokenizer(WORDS, numbers=256, vocab_size=320)


@pytest.fixture(scope="session")
def config() -> ExperimentConfig:
    return small_config()


@pytest.fixture(scope="session")
def state(config: ExperimentConfig) -> dict:
    return noisy_state(config)


@pytest.fixture(scope="session")
def programs(config, state, tokenizer):
    """Shared between tests: what is compiled once serves all of them."""
    from revision_jax.grounding.programs import Programs

    return Programs(config, state, tokenizer)
