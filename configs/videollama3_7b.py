"""VideoLLaMA3-7B as released: as the 2B, with Qwen2.5-7B."""

from configs import parts
from configs.videollama3_2b import preset
from revision_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return preset("videollama3_7b", parts.QWEN25_7B)
