"""ReVisionLLM's retrieval level on MSR-VTT: one token a video, groups of 100 videos, "In video 7" or "Not Present", above the levels that search in a video.

The released loader spreads its frames over the whole video, from its first to its last. How many frames and steps it took is not stated: as many as its
loader has unless told otherwise, and an epoch.
"""

import dataclasses

from configs.revisionllm_7b_mad import CLIP_L14, SPARSE, WINDOWS
from configs.revisionllm_7b_mad import get_config as mad
from revision_jax.config import DataConfig, ExperimentConfig, LevelConfig, StageConfig, TrainConfig

CAPTIONS = 180_000  # of the 9,000 training videos of the 1k-A protocol
VIDEOS = dataclasses.replace(WINDOWS, answer="In video {start}", end="single")


def get_config() -> ExperimentConfig:
    config = mad()
    videos = LevelConfig(name="videos", kind="video", tokens=100, frames=100, sampling="linspace", batch=4, spans=5, adapter=SPARSE, prompt=VIDEOS)
    random = (("random", 1.0),)
    stage = StageConfig(
        name="retrieval", level="videos", train=("lora/videos", "adapter/videos"), batch=128, steps=round(2 * CAPTIONS / 128), learning_rate=1e-4, warmup=0.03,
        absent=0.5, negatives=random,
    )  # fmt: skip
    return dataclasses.replace(
        config,
        name="revisionllm_7b_msrvtt",
        grounding=dataclasses.replace(config.grounding, levels=(videos, *config.grounding.levels)),
        data=DataConfig(dataset="msrvtt/9k", encoder=CLIP_L14),
        train=TrainConfig(base_dtype="bfloat16", stages=(stage,)),
    )
