"""tests/tiny.py's model with a stage of each kind, its sizes such that they divide by eight devices under every strategy. A config file too."""

import dataclasses

from revision_jax.config import DecoderConfig, ExperimentConfig, StageConfig, TrainConfig
from tests import tiny


def config() -> ExperimentConfig:
    base = tiny.config()
    decoder = DecoderConfig(
        vocab=304, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32, qkv_bias=True, tie_embeddings=True, lora=base.decoder.lora, time="token",
        signal=base.decoder.signal,
    )  # fmt: skip
    stages = (
        StageConfig(name="1a", level="dense", train=("lora/dense", "adapter/dense"), steps=10, batch=16),
        StageConfig(name="1b", task="presence", level="sparse", train=("adapter/sparse",), copies=(("lora/dense", "lora/sparse"),), steps=10, batch=16),
        StageConfig(name="2", level="sparse", train=("lora/sparse",), steps=10, batch=16),
        StageConfig(name="3", level="patch", train=("lora/patch",), steps=10, batch=16),
    )
    text = dataclasses.replace(base.text, vocab=304)
    return dataclasses.replace(base, name="stages", decoder=decoder, text=text, train=TrainConfig(stages=stages))


get_config = config
