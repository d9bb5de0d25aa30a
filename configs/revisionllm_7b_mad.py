"""ReVisionLLM on MAD, as released: Vicuna-7B with a LoRA and an adapter for each of its three hierarchies, over CLIP ViT-L/14 at 5 frames a second.

Coarse to fine: sparse tokens in groups of 100 windows, in groups of 33, dense. The released scripts run all three over the whole film and intersect; here
each looks at what the one above it left, as the paper describes, and a group is asked once. The released scripts ask at three zooms, `zooms=(4, 2, 1)` here,
which takes three times the language model's tokens in all (`python -m launch.bench tokens`). Trained on features alone, which others distribute (docs/data.md,
docs/features.md):

    python -m launch.train revisionllm_7b_mad --init CHECKPOINT data.root=DATASETS data.features=STORES [data.queries=QUERIES]

Trained are 159.9 M parameters for the dense level (the paper says 159 M), 345.0 M with the sparse one: two LoRAs and an adapter of 25.2 M. The paper's 363 M
for the default fit two LoRAs and two sparse encoders without their last projection (363.9 M, cut off as its 159 M are); it does not say so itself.
"""

import dataclasses

from configs import parts
from revision_jax.config import (
    AdapterConfig,
    DataConfig,
    ExampleConfig,
    ExperimentConfig,
    GroundingConfig,
    LevelConfig,
    MeshConfig,
    PromptConfig,
    StageConfig,
    TrainConfig,
)

WIDTH = 768  # of CLIP's image-text space and of its text tower
QUERIES = 280_183  # of MAD's training split, each with one moment
CLIP_L14 = "clip-vit-large-patch14"  # what made the features that MAD and VidChapters come with, as launch.import_features calls it
# Vicuna v1. Text on the two sides of the video is tokenised apart.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BEFORE = f"{SYSTEM} USER: "
SPARSE = AdapterConfig(kind="sparse", width=WIDTH, heads=8, mlp=2048, text_layers=2, self_layers=2, dropout=0.1)
DENSE = AdapterConfig(kind="dense", width=WIDTH)


def prompt(seen: str, **different) -> PromptConfig:
    """The released wording; `seen` is "frames" or "video". "Not Present" has no period."""
    return PromptConfig(
        before=BEFORE,
        after=f"\nDuring which {seen} can we see {{query}}? ASSISTANT:",
        answer="From {start} to {end}.",
        absent="Not Present",
        yes="yes",
        no="no",
        presence="\nDoes {query} happen in the video? Write your answer either yes or no. ASSISTANT:",
        **different,
    )


FRAMES = prompt("frames", digits=2, end="instant")  # frame numbers, at least two digits
WINDOWS = prompt("video", digits=1, end="exclusive")  # window numbers, the second one past the last
CROPS = dataclasses.replace(WINDOWS, after=FRAMES.after)  # stage 2 is trained with the dense wording, and asked with the other


def get_config() -> ExperimentConfig:
    group = LevelConfig(
        name="sparse-100", kind="sparse", span_s=125.0, stride_s=25.0, tokens=100, frames=250, batch=4, rest=2, beam=16, spans=4, adapter=SPARSE,
        prompt=WINDOWS, sampling="linspace",
    )  # fmt: skip
    dense = LevelConfig(
        name="dense", kind="dense", span_s=125.0, stride_s=62.5, tokens=250, sampling="linspace", batch=4, rest=2, beam=5, spans=4, adapter=DENSE, prompt=FRAMES
    )
    return ExperimentConfig(
        name="revisionllm_7b_mad",
        vision=parts.CLIP_VISION,
        text=dataclasses.replace(parts.CLIP_TEXT, suffix="."),
        decoder=dataclasses.replace(parts.VICUNA_7B, lora=parts.REVISION_LORA),
        grounding=GroundingConfig(
            levels=(group, dataclasses.replace(group, name="sparse-33", tokens=33, beam=5, spans=3), dense),
            rate=5.0,
            query_len=32,
            prompt_len=96,
            answer_len=16,
            confidence="entropy",
        ),
        data=DataConfig(dataset="mad", encoder=CLIP_L14),
        mesh=MeshConfig(data=1, fsdp=-1),
        train=TrainConfig(base_dtype="bfloat16", stages=stages((1024, 256, 128), (5, 1, 2), QUERIES)),
    )


def stages(batches: tuple[int, int, int], epochs: tuple[int, int, int], queries: int, **crops) -> tuple[StageConfig, ...]:
    """1-A dense, 1-B sparse, 2 sparse for groups of 100, and again for groups of 33. Cosine to zero, warm-up 3 %, no weight decay, random negatives.

    The released lists hold every query twice: 1-A and 1-B show its moment once and a window without it once, stage 2 its moment twice. crops: of stage 2's
    `ExampleConfig`.
    """
    first, second, third = (round(count * 2 * queries / batch) for count, batch in zip(epochs, batches, strict=True))
    whole = ExampleConfig(long_events="skip")
    random = (("random", 1.0),)
    common = {"learning_rate": 1e-4, "warmup": 0.03, "weight_decay": 0.0, "optimizer": "adamw", "negatives": random}
    # As released, a group always holds the moment; train.stages.2.absent=0.3 also shows groups that do not.
    last = {"batch": batches[2], "steps": third, "absent": 0.0, "prompt": CROPS, "examples": ExampleConfig(groups="crops", crops=(2, 3), **crops), **common}
    return (
        StageConfig(name="1a", level="dense", train=("lora/dense",), batch=batches[0], steps=first, absent=0.5, examples=whole, **common),
        StageConfig(
            name="1b", task="presence", level="sparse-100", train=("adapter/sparse-100",), copies=(("lora/dense", "lora/sparse-100"),),
            batch=batches[1], steps=second, absent=0.5, examples=whole, **common,
        ),
        StageConfig(name="2", level="sparse-100", train=("lora/sparse-100",), **last),
        StageConfig(
            name="2-33", level="sparse-33", train=("lora/sparse-33",),
            copies=(("lora/dense", "lora/sparse-33"), ("adapter/sparse-100", "adapter/sparse-33")), **last,
        ),
    )  # fmt: skip
