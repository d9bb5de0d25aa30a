"""The flagship at 7B: as the 2B, with VideoLLaMA3-7B's encoder, projector and decoder."""

from configs import parts
from configs.revision_2b import preset
from revision_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return preset("revision_7b", parts.QWEN25_7B)
