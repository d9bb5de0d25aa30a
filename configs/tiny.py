"""The shipped model: the whole system with small numbers, trained on the rendered world on two CPU cores."""

from revision_jax.config import (
    AdapterConfig,
    DataConfig,
    DecoderConfig,
    ExperimentConfig,
    GroundingConfig,
    LevelConfig,
    LoraConfig,
    PromptConfig,
    PrunerConfig,
    SignalConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)

WIDTH = 96  # E: the aligned image-text space, and what every adapter reads
VOCAB = 512
ENCODERS = ("params/vision", "params/text", "params/similarity", "params/projection")
NEGATIVES = (("random", 0.25), ("hard", 0.25), ("cross_video", 0.1), ("swap", 0.4))
SIGNAL = ("lora/dense/layers/signal_scale", "lora/dense/summary_projection", "lora/dense/cues")


def get_config() -> ExperimentConfig:
    sparse = AdapterConfig(kind="sparse", width=WIDTH, heads=4, mlp=384, dropout=0.0)
    windows = PromptConfig(after="during which video can we see {query} ?")
    return ExperimentConfig(
        name="tiny",
        vision=VisionConfig(width=128, layers=4, heads=4, mlp=512, patch=16, grids=((10, 10),), merge=2, pool="mean", projection=WIDTH),
        text=TextConfig(
            vocab=VOCAB, width=WIDTH, layers=3, heads=4, mlp=384, max_len=32, projection=WIDTH, causal=True, pool="eos", activation="gelu_tanh", phrases=2
        ),
        pruner=PrunerConfig(threshold=2.0, where="before_encoder", budgets=(64, 128, 256, 512)),
        decoder=DecoderConfig(
            vocab=VOCAB,
            width=128,
            layers=3,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp=384,
            norm_eps=1e-6,
            rope_theta=10000.0,
            qkv_bias=True,
            tie_embeddings=True,
            lora=LoraConfig(rank=32, alpha=64.0, dropout=0.0),
            signal=SignalConfig(enabled=True, similarity="late", channels=("level", "square", "rise", "fall"), cues=True, init=1.0),
            time="token",
            scan=False,  # the same numbers and weights; on a CPU a third faster
        ),
        grounding=GroundingConfig(
            levels=(
                LevelConfig(
                    name="nested",
                    kind="nested",
                    span_s=900.0,
                    stride_s=900.0,
                    tokens=60,
                    batch=1,
                    beam=12,
                    spans=6,
                    min_duration_s=14400.0,
                    adapter=sparse,
                    prompt=windows,
                ),
                LevelConfig(
                    name="sparse", kind="sparse", span_s=60.0, stride_s=30.0, tokens=120, frames=30, batch=1, beam=11, spans=11, adapter=sparse, prompt=windows
                ),
                LevelConfig(
                    name="dense",
                    kind="dense",
                    span_s=120.0,
                    stride_s=60.0,
                    tokens=120,
                    batch=8,
                    beam=4,
                    spans=4,
                    adapter=AdapterConfig(kind="dense", width=WIDTH),
                ),
                LevelConfig(
                    name="patch",
                    kind="patch",
                    span_s=8.0,
                    stride_s=8.0,
                    tokens=32,
                    batch=8,
                    beam=4,
                    spans=1,
                    budget=256,
                    adapter=AdapterConfig(kind="mlp", width=WIDTH),
                ),
                LevelConfig(
                    name="flat",
                    kind="dense",
                    span_s=3600.0,
                    stride_s=3600.0,
                    tokens=120,
                    batch=8,
                    spans=4,
                    adapter=AdapterConfig(kind="dense", width=WIDTH),
                    baseline=True,
                ),
            ),
            rate=1.0,
            query_len=32,
            prompt_len=40,
            answer_len=8,
        ),
        data=DataConfig(train_videos=24, patch_videos=3),
        train=TrainConfig(
            stages=(
                StageConfig(
                    name="pretrain", task="pretrain", train=ENCODERS, steps=5000, batch=32, learning_rate=4e-3, weight_decay=0.01, optimizer="muon", keep=0.48
                ),
                StageConfig(
                    name="language",
                    task="language",
                    train=("params/decoder", "adapter/dense", "adapter/patch", *SIGNAL),
                    steps=600,
                    batch=16,
                    learning_rate=3e-3,
                    weight_decay=0.01,
                    optimizer="muon",
                ),
                StageConfig(
                    name="1a",
                    level="dense",
                    train=("lora/dense", "adapter/dense"),
                    steps=1600,
                    batch=32,
                    learning_rate=3e-3,
                    negatives=NEGATIVES,
                    cut=0.2,
                ),
                StageConfig(
                    name="1b",
                    task="presence",
                    level="sparse",
                    train=("adapter/sparse", "lora/sparse/layers/signal_scale", "lora/sparse/summary_projection", "lora/sparse/cues"),
                    copies=(("lora/dense", "lora/sparse"),),
                    steps=300,
                    batch=32,
                    learning_rate=3e-3,
                    negatives=NEGATIVES,
                ),
                StageConfig(
                    name="2",
                    level="sparse",
                    train=("lora/sparse",),
                    steps=400,
                    batch=4,
                    learning_rate=3e-3,
                    absent=0.3,
                    negatives=(("swap", 0.7), ("cross_video", 0.3)),
                    crop=0.25,
                ),
                StageConfig(
                    name="2-nested",
                    level="nested",
                    train=("lora/nested",),
                    copies=(("lora/sparse", "lora/nested"), ("adapter/sparse", "adapter/nested")),
                    steps=150,
                    batch=2,
                    windows=240,
                    learning_rate=1e-3,
                    absent=0.3,
                ),
                StageConfig(
                    name="3",
                    level="patch",
                    train=("lora/patch", "adapter/patch"),
                    copies=(("lora/dense", "lora/patch"),),
                    steps=400,
                    batch=16,
                    learning_rate=3e-3,
                    absent=0.1,
                ),
                StageConfig(
                    name="flat",
                    level="flat",
                    train=("lora/flat", "adapter/flat"),
                    copies=(("lora/dense", "lora/flat"), ("adapter/dense", "adapter/flat")),
                    steps=1600,
                    batch=32,
                    learning_rate=3e-3,
                    negatives=(("swap", 0.5), ("cross_video", 0.5)),
                ),
            ),
        ),
    )
