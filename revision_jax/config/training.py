"""How a model is trained: the stages of the curriculum, the data, the mesh, and what holds for all stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from revision_jax.config.conversations import ConversationConfig
from revision_jax.config.examples import NEGATIVES, ExampleConfig
from revision_jax.config.fields import _check, _one_of, _positive
from revision_jax.config.levels import PromptConfig


@dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum: what is seen, what is trained, for how long."""

    name: str = "1a"
    task: Literal["pretrain", "language", "ground", "presence", "conversation"] = "ground"
    level: str = ""  # whose adapter, LoRA, shapes and prompt; empty for pretrain and language
    train: tuple[str, ...] = ()  # path prefixes that are trained: "params", "lora/dense", "adapter/dense"
    copies: tuple[tuple[str, str], ...] = ()  # (from, to) subtrees copied when the stage begins: ("lora/dense", "lora/sparse")
    steps: int = 1000
    batch: int = 32
    accumulate: int = 1  # a batch is gone through in so many parts, one after another; the step is that of the whole batch
    learning_rate: float = 1e-4
    rates: tuple[tuple[str, float], ...] = ()  # (path prefix, learning rate) of parts that have another one; the longest prefix counts
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    best: str = "loss"  # the metric, a mean over the steps since the checkpoint before, that `train.keep_best` goes by
    best_is: Literal["lowest", "highest"] = "lowest"
    absent: float = 0.5  # share of examples whose answer is "not present" (contrastive windows and questions)
    negatives: tuple[tuple[str, float], ...] = (("random", 0.5), ("hard", 0.5))  # of `examples.NEGATIVES`, with weights
    absent_weight: float = 1.0  # weight of absent examples in the loss
    windows: int = 0  # sparse: windows of one example (0 = the level's tokens)
    caption_len: int = 24  # pretrain, language: S, text-tower positions of a caption
    keep: float = 1.0  # pretrain: share of an image's blocks of patches that are encoded, those with the most contrast
    varied: float = 0.0  # pretrain, language: share of the pictures that look a little unlike the films: ground, palette, compression (`stills.still_batch`)
    cut: float = 0.0  # dense, presence: share of positive windows whose border may cut the event, as the windows of a search do
    crop: float = 0.0  # sparse, nested: share of examples that hold only some of the windows, as a short film or a last group does
    conversation: ConversationConfig | None = None  # conversation: its data and shapes; `batch` counts packed rows then
    examples: ExampleConfig = field(default_factory=ExampleConfig)  # how they are cut out of the films
    prompt: PromptConfig | None = None  # in place of the level's, where training asks otherwise than answering does

    def __post_init__(self):
        w = f"stages.{self.name}"
        _one_of(f"{w}.task", self.task, ("pretrain", "language", "ground", "presence", "conversation"))
        _check((self.task == "conversation") == (self.conversation is not None), f"{w}.conversation", f"goes with the task conversation, and it is {self.task}")
        for prefix, rate in self.rates:
            inside = any(prefix == part or prefix.startswith(part + "/") for part in self.train)
            _check(inside, f"{w}.rates", f"{prefix!r} is not under what is trained ({', '.join(self.train)})")
            _check(rate > 0, f"{w}.rates", f"rate of {prefix} must be above 0, is {rate}")
        _positive(w, batch=self.batch, learning_rate=self.learning_rate, accumulate=self.accumulate)
        _check(self.batch % self.accumulate == 0, f"{w}.accumulate", f"a batch of {self.batch} does not divide into {self.accumulate} parts")
        whole = self.accumulate > 1 and self.task in ("pretrain", "language")
        _check(not whole, f"{w}.accumulate", f"must be 1 for the task {self.task}, whose loss compares all of a batch, is {self.accumulate}")
        _check(self.steps >= 0, f"{w}.steps", f"must not be negative, is {self.steps}")
        _one_of(f"{w}.optimizer", self.optimizer, ("adamw", "muon"))
        _one_of(f"{w}.best_is", self.best_is, ("lowest", "highest"))
        for name in ("absent", "varied", "cut", "crop"):
            _check(0 <= getattr(self, name) <= 1, f"{w}.{name}", f"must lie in [0, 1], is {getattr(self, name)}")
        for name, weight in self.negatives:
            _one_of(f"{w}.negatives", name, NEGATIVES)
            _check(weight >= 0, f"{w}.negatives", f"weight of {name} is negative")
            scored = name != "semi_hard" or weight == 0 or (self.examples.scores and self.examples.scored_by)
            _check(bool(scored), f"{w}.examples.scores", "semi-hard negatives need a file of scores, and scored_by the checkpoint that they are of")


@dataclass(frozen=True)
class DataConfig:
    """The corpus the curriculum reads. `dataset="synthetic"` renders the world; its splits have seeds that cannot meet. Any other name ("mad", "jsonl/all") is
    a dataset that `launch.datasets build` put under `root`, with a feature store for each of its videos under `features`: put there by `launch.extract` with
    this model's encoder, or by `launch.import_features` under the name `encoder`."""

    dataset: str = "synthetic"
    root: str = ""
    features: str = ""
    media: str = ""  # conversations: the folder that the paths of images and videos are relative to
    encoder: str = ""  # what made the features: the name that they were imported under; empty: this model's own encoder, by its weights
    queries: str = ""  # a store of text features, in place of the text tower
    query_encoder: str = ""  # what made those; empty: `encoder`
    on_missing: Literal["raise", "skip"] = "raise"  # a video without usable features; a conversation whose media cannot be read
    version: int = 1
    train_videos: int = 24
    validation_videos: int = 6
    test_videos: int = 20
    duration_s: float = 3600.0
    patch_videos: int = 4  # training videos that are also stored at the patch level's rate
    fps: int = 5  # of the rendered videos
    workers: int = 0  # Grain worker processes; 0 = threads
    prefetch: int = 4  # batches ahead of the training thread

    def __post_init__(self):
        _positive(
            "data",
            train_videos=self.train_videos,
            validation_videos=self.validation_videos,
            test_videos=self.test_videos,
            duration_s=self.duration_s,
            fps=self.fps,
        )


@dataclass(frozen=True)
class MeshConfig:
    """Mesh axis sizes; one may be -1 (what is left). `rules` names a strategy of `sharding/rules.py`."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    rules: str = "default"

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.context, self.tensor)
        _check(sum(s == -1 for s in sizes) <= 1, "mesh", f"at most one axis may be -1, sizes are {sizes}")
        _check(all(s == -1 or s > 0 for s in sizes), "mesh", f"axis sizes must be positive (or one -1), are {sizes}")


@dataclass(frozen=True)
class TrainConfig:
    seed: int = 0
    stages: tuple[StageConfig, ...] = ()
    # Of `params` wherever a stage does not train them; what is trained is float32. int8: the matrices of the decoder's layers, all else bfloat16.
    base_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    checkpoint_every: int = 250  # steps
    keep: int = 2  # the last so many checkpoints of a stage
    keep_best: int = 0  # and so many of the best, by the stage's `best`
    not_finite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is no number ends the run, or the step changes nothing
    log_every: int = 25

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        _check(len(names) == len(set(names)), "train.stages", f"names must differ, are {names}")
        _one_of("train.base_dtype", self.base_dtype, ("float32", "bfloat16", "int8"))
        _one_of("train.not_finite", self.not_finite, ("stop", "skip"))
        _check(self.keep_best >= 0, "train.keep_best", f"must not be negative, is {self.keep_best}")
        for stage in self.stages if self.base_dtype == "int8" else ():
            frozen = not any(part == "params" or part == "params/decoder" or part.startswith("params/decoder/") for part in stage.train)
            _check(frozen, "train.base_dtype", f"'int8' is for a decoder that is not trained, and stage {stage.name} trains it: use 'bfloat16'")

    @property
    def plain_dtype(self) -> str:
        """Of `params` that are not quantised."""
        return "bfloat16" if self.base_dtype == "int8" else self.base_dtype
