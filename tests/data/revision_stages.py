"""ReVisionLLM's levels and stages, with numbers small enough for tests, over `films.listed`'s corpus; and what an example was made of."""

import dataclasses

from configs.revisionllm_7b_mad import CROPS, FRAMES, WINDOWS
from configs.revisionllm_7b_msrvtt import VIDEOS
from revision_jax.config import AdapterConfig, ExampleConfig, ExperimentConfig, GroundingConfig, LevelConfig, StageConfig, TextConfig, TrainConfig, VisionConfig
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.tokenizer import Tokenizer
from tests.data.memory_store import E
from tests.real_tokenizers import byte_level, sentencepiece_like

WORDS, CAPTIONS = Tokenizer(sentencepiece_like()), Tokenizer(byte_level(("<|startoftext|>", "<|endoftext|>")))


def config() -> ExperimentConfig:
    sparse = AdapterConfig(kind="sparse", width=E, heads=2, mlp=8)
    group = LevelConfig(name="sparse", kind="sparse", span_s=60.0, stride_s=12.0, tokens=12, frames=20, sampling="linspace", adapter=sparse, prompt=WINDOWS)
    dense = LevelConfig(
        name="dense", span_s=60.0, stride_s=30.0, tokens=100, sampling="linspace", adapter=AdapterConfig(width=E), prompt=FRAMES,
    )  # fmt: skip
    videos = LevelConfig(name="videos", kind="video", tokens=3, frames=10, sampling="linspace", adapter=sparse, prompt=VIDEOS)
    random = (("random", 1.0),)
    whole, crops = ExampleConfig(long_events="skip"), ExampleConfig(groups="crops")
    stages = (
        StageConfig(name="1a", level="dense", negatives=random, examples=whole),
        StageConfig(name="1b", task="presence", level="sparse", negatives=random, examples=whole),
        StageConfig(name="2", level="sparse", negatives=random, absent=0.0, examples=crops, prompt=CROPS),
        StageConfig(name="retrieval", level="videos", negatives=random),
    )
    return ExperimentConfig(
        vision=VisionConfig(projection=E), text=TextConfig(width=E, heads=2, projection=E, suffix="."), train=TrainConfig(stages=stages),
        grounding=GroundingConfig(levels=(videos, group, dense), query_len=48, prompt_len=128, answer_len=16),
    )  # fmt: skip


class Recorded(Curriculum):
    """Keeps the question and the answer in numbers, beside the arrays made of them."""

    def _text(self, question, answer, out):
        self.question, self.answer = question, answer
        super()._text(question, answer, out)


def make(corpus, name, *, examples=None, seed=7, **changes) -> Recorded:
    """The curriculum of a stage, with changes to it and (`examples`) to its `ExampleConfig`."""
    given = config()
    stage = next(stage for stage in given.train.stages if stage.name == name)
    stage = dataclasses.replace(stage, examples=dataclasses.replace(stage.examples, **(examples or {})), **changes)
    return Recorded(given, stage, corpus, WORDS, seed, CAPTIONS)


def source(frames, mask):
    """(film, numbers of its frames) that a window shows; what is masked is zeros."""
    shown = frames[mask]
    assert len(set(shown[:, 1])) == 1 and not frames[~mask].any()
    return int(shown[0, 1]), shown[:, 0].astype(int)
