"""ReVisionLLM on VidChapters-7M, as released: windows of 500 s at 2 frames a second, one sparse hierarchy over the dense one.

Its stage 2 used the "alternate" adapter, whose last LayerNorm the released evaluation leaves out: where a file has it, it is kept, unused. Stage 1-A was
trained with 250 frames a window, and is asked with 100. Stage 1-B was trained on windows of 50 s, 100 of their frames at 5 a second: these are features of
their own (`train.stages.1b.examples.features=STORES`); `train.stages.1b.examples.rate=2` cuts such windows out of those at hand, which then have exactly
100 frames each. Stage 2 had videos of more than 2,500 s alone.
"""

import dataclasses

from configs import parts
from configs.revisionllm_7b_mad import CLIP_L14, DENSE, FRAMES, SPARSE, WINDOWS, stages
from configs.revisionllm_7b_mad import get_config as mad
from revision_jax.config import DataConfig, ExperimentConfig, GroundingConfig, LevelConfig, StageConfig, TrainConfig

QUERIES = 280_000  # how many chapters one epoch had is not stated: as many as MAD has


def get_config() -> ExperimentConfig:
    sparse = LevelConfig(
        name="sparse-100", kind="sparse", span_s=500.0, stride_s=100.0, tokens=100, frames=250, sampling="linspace", batch=4, beam=20, spans=5,
        adapter=dataclasses.replace(SPARSE, norm="skipped"), prompt=WINDOWS,
    )  # fmt: skip
    dense = LevelConfig(
        name="dense", kind="dense", span_s=500.0, stride_s=250.0, tokens=100, sampling="linspace", batch=4, beam=5, spans=4, adapter=DENSE, prompt=FRAMES
    )
    return dataclasses.replace(
        mad(),
        name="revisionllm_7b_vidchapters",
        vision=parts.CLIP_VISION,
        grounding=GroundingConfig(levels=(sparse, dense), rate=2.0, query_len=32, prompt_len=96, answer_len=16, confidence="entropy"),
        data=DataConfig(dataset="vidchapters", encoder=CLIP_L14),
        train=TrainConfig(base_dtype="bfloat16", stages=_stages()),
    )


def _stages() -> tuple[StageConfig, ...]:
    own = {"1a": {"frames": 250}, "1b": {"span_s": 50.0, "frames": 100, "rate": 5.0}}
    kept = [stage for stage in stages((256, 512, 128), (1, 1, 1), QUERIES, min_duration_s=2500.0) if stage.name != "2-33"]
    return tuple(dataclasses.replace(stage, examples=dataclasses.replace(stage.examples, **own.get(stage.name, {}))) for stage in kept)
