"""The flagship at 2B: SigLIP so400m finds (sparse and dense levels, search signal), VideoLLaMA3's encoder looks closely (patch level), Qwen2.5-1.5B answers.

It starts from released weights: SigLIP's pair, and VideoLLaMA3-2B for patch encoder, projector and decoder. LoRAs, adapters and signal are trained here.
"""

import dataclasses

from configs import parts
from revision_jax.config import (
    AdapterConfig,
    DataConfig,
    DecoderConfig,
    ExperimentConfig,
    GroundingConfig,
    LevelConfig,
    MeshConfig,
    PromptConfig,
    PrunerConfig,
    SignalConfig,
    StageConfig,
    TrainConfig,
)

WIDTH = parts.SIGLIP_VISION.output
SPARSE = AdapterConfig(kind="sparse", width=WIDTH, heads=8, mlp=3072)
DENSE = AdapterConfig(kind="dense", width=WIDTH)
PROJECTOR = AdapterConfig(kind="mlp", width=parts.NAVIT.output)
NEGATIVES = (("random", 0.3), ("hard", 0.4), ("cross_video", 0.1), ("swap", 0.2))


def prompt(seen: str) -> PromptConfig:
    """ReVisionLLM's question in the decoder's own chat template."""
    return PromptConfig(
        before="<|im_start|>user\n",
        after=f"\nDuring which {seen} can we see {{query}}?<|im_end|>\n<|im_start|>assistant\n",
        answer="From {start} to {end}.",
        absent="Not Present.",
        yes="Yes.",
        no="No.",
        presence="\nDoes {query} happen in the video?<|im_end|>\n<|im_start|>assistant\n",
    )


def get_config() -> ExperimentConfig:
    return preset("revision_2b", parts.QWEN25_1B5)


def preset(name: str, decoder: DecoderConfig) -> ExperimentConfig:
    windows, frames = prompt("video"), prompt("frames")
    levels = (
        LevelConfig(
            name="nested", kind="nested", span_s=900.0, stride_s=900.0, tokens=60, batch=1, beam=12, spans=6, min_duration_s=14400.0, adapter=SPARSE,
            prompt=windows,
        ),
        LevelConfig(
            name="sparse", kind="sparse", span_s=60.0, stride_s=30.0, tokens=120, frames=60, batch=2, beam=12, spans=8, adapter=SPARSE, prompt=windows
        ),
        LevelConfig(name="dense", kind="dense", span_s=120.0, stride_s=60.0, tokens=240, batch=4, beam=4, spans=4, adapter=DENSE, prompt=frames),
        LevelConfig(
            name="patch", kind="patch", span_s=8.0, stride_s=8.0, tokens=32, batch=4, beam=4, spans=1, budget=1024, adapter=PROJECTOR, prompt=frames
        ),
    )  # fmt: skip
    return ExperimentConfig(
        name=name,
        vision=parts.SIGLIP_VISION,
        patch_vision=parts.NAVIT,
        text=parts.SIGLIP_TEXT,
        # Ten times the released threshold: half a grey level of 255, above the noise of a codec.
        pruner=PrunerConfig(threshold=1.0, where="before_encoder", budgets=(256, 512, 1024)),
        decoder=dataclasses.replace(
            decoder,
            lora=parts.REVISION_LORA,
            # Off until it is trained: with scales of 0 the decoder begins as released.
            signal=SignalConfig(enabled=True, similarity="pooled", channels=("level", "square", "rise", "fall"), cues=True, init=0.0),
            time="sinusoidal",  # Qwen writes numbers digit by digit
        ),
        grounding=GroundingConfig(levels=levels, rate=2.0, query_len=parts.SIGLIP_TEXT.max_len, prompt_len=96, answer_len=16),
        data=DataConfig(dataset="mad"),
        mesh=MeshConfig(data=1, fsdp=-1),
        train=TrainConfig(base_dtype="bfloat16", stages=_stages()),
    )


def _stages() -> tuple[StageConfig, ...]:
    """ReVisionLLM's three, then the nested and the patch level, each from a copy of what the level below has learnt."""
    signal = tuple(f"lora/sparse/{part}" for part in ("layers/signal_scale", "summary_projection", "cues"))
    return (
        StageConfig(name="1a", level="dense", train=("lora/dense", "adapter/dense"), steps=2700, batch=512, learning_rate=1e-4, negatives=NEGATIVES, cut=0.2),
        StageConfig(
            name="1b", task="presence", level="sparse", train=("adapter/sparse", *signal), copies=(("lora/dense", "lora/sparse"),), steps=1100, batch=256,
            learning_rate=1e-4, negatives=NEGATIVES, cut=1.0,
        ),
        StageConfig(name="2", level="sparse", train=("lora/sparse",), steps=4400, batch=128, learning_rate=1e-4, absent=0.3, negatives=NEGATIVES, crop=0.25),
        StageConfig(
            name="2-nested", level="nested", train=("lora/nested",), copies=(("lora/sparse", "lora/nested"), ("adapter/sparse", "adapter/nested")), steps=500,
            batch=32, windows=240, learning_rate=1e-4, absent=0.3,
        ),
        StageConfig(name="3", level="patch", train=("lora/patch",), steps=1100, batch=128, learning_rate=1e-4, absent=0.1),
    )  # fmt: skip
