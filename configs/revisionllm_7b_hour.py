"""ReVisionLLM as the method is told, in its own words and numbers: an hour at one frame a second, two minutes of 120 frames a dense window, three minutes a
sparse token, "From 120 to 240." or "Not Present.", the adapter trained together with the LoRA in stage 1-A. Widths and towers are those of the released models.
"""

import dataclasses

from configs.revisionllm_7b_mad import DENSE, SPARSE
from configs.revisionllm_7b_mad import get_config as mad
from revision_jax.config import DataConfig, ExperimentConfig, GroundingConfig, LevelConfig, PromptConfig, TrainConfig

# <video> stands in front of it, and nothing before that.
WORDS = PromptConfig(
    before="", after=" when can we see the {query} happening?", answer="From {start} to {end}.", absent="Not Present.", yes="yes", no="no",
    presence=" Does the {query} happen? yes/no",
)  # fmt: skip


def get_config() -> ExperimentConfig:
    config = mad()
    sparse = LevelConfig(
        name="sparse", kind="sparse", span_s=180.0, stride_s=180.0, tokens=20, frames=180, batch=4, beam=4, spans=4, adapter=SPARSE, prompt=WORDS
    )
    dense = LevelConfig(name="dense", kind="dense", span_s=120.0, stride_s=60.0, tokens=120, batch=4, beam=5, spans=4, adapter=DENSE, prompt=WORDS)
    return dataclasses.replace(
        config,
        name="revisionllm_7b_hour",
        grounding=GroundingConfig(levels=(sparse, dense), rate=1.0, query_len=32, prompt_len=96, answer_len=16, confidence="entropy"),
        data=DataConfig(dataset="mad"),
        train=TrainConfig(base_dtype="bfloat16", stages=_stages(config)),
    )


def _stages(config: ExperimentConfig) -> tuple:
    """The released recipe on these levels; groups of the level's own grid, and one in three holds nothing of what is asked."""
    first, second, third = config.train.stages[:3]
    return (
        dataclasses.replace(first, train=("lora/dense", "adapter/dense")),
        dataclasses.replace(second, level="sparse", train=("adapter/sparse",), copies=(("lora/dense", "lora/sparse"),)),
        dataclasses.replace(
            third, level="sparse", train=("lora/sparse",), absent=0.3, prompt=None, examples=dataclasses.replace(third.examples, groups="grid"),
            negatives=(("query_swap", 1.0),),
        ),
    )  # fmt: skip
