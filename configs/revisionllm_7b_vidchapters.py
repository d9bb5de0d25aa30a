"""ReVisionLLM on VidChapters-7M, as released: windows of 500 s at 2 frames a second, one sparse hierarchy over the dense one.

Its stage 2 used the "alternate" adapter, whose last LayerNorm the released evaluation leaves out: where a file has it, it is kept, unused. Stage 1-B was
trained on windows of 50 s at 5 frames a second; the level's own are used here.
"""

import dataclasses

from configs import parts
from configs.revisionllm_7b_mad import DENSE, FRAMES, SPARSE, WINDOWS, stages
from configs.revisionllm_7b_mad import get_config as mad
from revision_jax.config import DataConfig, ExperimentConfig, GroundingConfig, LevelConfig, TrainConfig

QUERIES = 280_000  # how many chapters one epoch had is not stated: as many as MAD has


def get_config() -> ExperimentConfig:
    sparse = LevelConfig(
        name="sparse-100", kind="sparse", span_s=500.0, stride_s=100.0, tokens=100, frames=250, batch=4, zooms=(4, 2, 1), beam=20, spans=5,
        adapter=dataclasses.replace(SPARSE, norm="skipped"), prompt=WINDOWS,
    )  # fmt: skip
    dense = LevelConfig(name="dense", kind="dense", span_s=500.0, stride_s=250.0, tokens=100, batch=4, beam=5, spans=4, adapter=DENSE, prompt=FRAMES)
    return dataclasses.replace(
        mad(),
        name="revisionllm_7b_vidchapters",
        vision=parts.CLIP_VISION,
        grounding=GroundingConfig(levels=(sparse, dense), rate=2.0, query_len=32, prompt_len=96, answer_len=16, confidence="entropy"),
        data=DataConfig(dataset="vidchapters"),
        train=TrainConfig(stages=tuple(stage for stage in stages((256, 512, 128), (1, 1, 1), QUERIES) if stage.name != "2-33")),
    )
