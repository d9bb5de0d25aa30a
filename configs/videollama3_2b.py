"""VideoLLaMA3-2B as released: its encoder, its projector, Qwen2.5-1.5B. What `python -m launch.chat` talks with, and its four stages of training."""

from configs import parts
from configs.videollama3_stages import stages
from revision_jax.config import AdapterConfig, DecoderConfig, ExperimentConfig, GroundingConfig, LevelConfig, PrunerConfig, TrainConfig


def get_config() -> ExperimentConfig:
    return preset("videollama3_2b", parts.QWEN25_1B5)


def preset(name: str, decoder: DecoderConfig) -> ExperimentConfig:
    """VideoLLaMA3 with a decoder. Its one level holds the projector; 180 frames at one a second, 16,384 tokens, are what it was released for."""
    level = LevelConfig(
        name="patch", kind="patch", span_s=180.0, stride_s=90.0, tokens=180, batch=1, spans=1, budget=16384,
        adapter=AdapterConfig(kind="mlp", width=parts.NAVIT.output),
    )  # fmt: skip
    return ExperimentConfig(
        name=name,
        vision=parts.NAVIT,
        text=None,
        pruner=PrunerConfig(threshold=0.1, keep="first", reference="previous", where="after_encoder", min_tokens=1, budgets=(1024, 4096, 16384)),
        decoder=decoder,
        grounding=GroundingConfig(levels=(level,), rate=1.0),
        train=TrainConfig(stages=stages(), checkpoint_every=1000),
    )
