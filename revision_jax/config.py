"""Every static size and every choice of the system, as frozen dataclasses.

One class per part. `__post_init__` validates; a wrong value raises `ConfigError` with one line that names the field, what it is and what
would be right. Presets live in `configs/` and are plain Python: `get_config() -> ExperimentConfig`. A config is JSON both ways
(`to_dict`, `from_dict`), which is how it travels inside a checkpoint, and takes dotted overrides from the command line (`override`).

Axis legend, used in every shape of the project: B batch, T frames (time), P patches of a frame, N visual tokens, S text positions,
D vision width, H decoder width, K heads, G KV heads, V vocabulary, W windows, Q queries, E width of the aligned image-text space,
C channels of the search signal.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from revision_jax.conversation_config import ConversationConfig, RowConfig  # noqa: F401  both are part of this module
from revision_jax.example_config import NEGATIVES, ExampleConfig
from revision_jax.fields import ConfigError, _build, _check, _one_of, _positive

# --------------------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class VisionConfig:
    """A ViT. `position="rope2d"` is VideoLLaMA3's encoder, `"learned"` CLIP's and SigLIP's."""

    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp: int = 4304
    patch: int = 14  # pixels
    position: Literal["rope2d", "learned"] = "rope2d"
    grids: tuple[tuple[int, int], ...] = ((16, 16),)  # (rows, columns) of patches: the buckets images are resized and padded into
    merge: int = 2  # m: m x m patches become one token after the encoder
    pool: Literal["mean", "cls", "attention", "none"] = "mean"  # how a frame vector is made of its patch tokens; "attention" is SigLIP's head
    class_token: bool = False
    pre_norm: bool = False  # CLIP normalises the embeddings before the first block
    projection: int = 0  # E: width of the aligned image-text space that tokens and frame vector are projected to; 0 = none
    activation: Literal["gelu_tanh", "quick_gelu", "gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        w = "vision"
        _positive(w, width=self.width, layers=self.layers, heads=self.heads, mlp=self.mlp, patch=self.patch, merge=self.merge)
        _check(self.width % self.heads == 0, f"{w}.heads", f"width {self.width} does not divide into {self.heads} heads")
        _check(self.position != "rope2d" or self.head_dim % 4 == 0, f"{w}.heads", f"2-D RoPE needs a head width that divides by 4, is {self.head_dim}")
        _one_of(f"{w}.position", self.position, ("rope2d", "learned"))
        _one_of(f"{w}.pool", self.pool, ("mean", "cls", "attention", "none"))
        _one_of(f"{w}.activation", self.activation, ("gelu_tanh", "quick_gelu", "gelu"))
        _check(len(self.grids) > 0, f"{w}.grids", "needs at least one (rows, columns) bucket")
        for rows, cols in self.grids:
            _check(
                rows > 0 and cols > 0 and rows % self.merge == 0 and cols % self.merge == 0,
                f"{w}.grids",
                f"({rows}, {cols}) does not divide by merge {self.merge}",
            )
        _check(self.pool != "cls" or self.class_token, f"{w}.pool", "'cls' needs class_token=True")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def output(self) -> int:
        """Width of the tokens and frame vectors that leave the encoder."""
        return self.projection or self.width


@dataclass(frozen=True)
class TextConfig:
    """The text tower of an image-text pair (CLIP, SigLIP, or the tiny model's own)."""

    vocab: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    max_len: int = 77  # S: positions, start and end tokens included
    projection: int = 768  # E
    causal: bool = True
    pool: Literal["eos", "last", "mean"] = "eos"
    activation: Literal["gelu_tanh", "quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    suffix: str = ""  # put behind a query: "." for CLIP in ReVisionLLM
    pad_id: int = 1  # pool="last" (SigLIP) reads its padding as text: this token
    phrases: int = 0  # vectors beside the whole query's, one for each thing that it speaks of, in the order in which they matter; 0 for released towers
    motion: bool = False  # also say which way the query's subject moves; released towers do not

    def __post_init__(self):
        w = "text"
        _positive(w, vocab=self.vocab, width=self.width, layers=self.layers, heads=self.heads, mlp=self.mlp, max_len=self.max_len, projection=self.projection)
        _check(self.width % self.heads == 0, f"{w}.heads", f"width {self.width} does not divide into {self.heads} heads")
        _one_of(f"{w}.pool", self.pool, ("eos", "last", "mean"))
        _one_of(f"{w}.activation", self.activation, ("gelu_tanh", "quick_gelu", "gelu"))
        _check(self.phrases >= 0, f"{w}.phrases", f"must not be negative, is {self.phrases}")
        _check(0 <= self.pad_id < self.vocab, f"{w}.pad_id", f"must be a token of the vocabulary of {self.vocab}, is {self.pad_id}")


@dataclass(frozen=True)
class SignalConfig:
    """The search signal: a frame's similarity to the query, as attention bias, as summary and as cues (models/signal.py)."""

    enabled: bool = False
    similarity: Literal["late", "pooled"] = "pooled"  # late: maximum over a frame's tokens; pooled: one vector a frame
    channels: tuple[str, ...] = ("level", "square")  # of: level, square, rise, fall
    top: int = 4  # similarities in the summary, and frames averaged into a sparse token's similarity
    cues: bool = False  # a token behind the question for each slot, which says what the similarities do there
    scales: tuple[int, ...] = (3, 9, 27)  # slots to each side over which a cue tells how far the match travels
    init: float = 0.0  # starting scale of the bias: 0 for released checkpoints, 1 for models trained here

    def __post_init__(self):
        for channel in self.channels:
            _one_of("signal.channels", channel, ("level", "square", "rise", "fall"))
        _one_of("signal.similarity", self.similarity, ("late", "pooled"))
        _positive("signal", top=self.top)
        _check(all(scale > 0 for scale in self.scales), "signal.scales", f"must be positive, are {self.scales}")


@dataclass(frozen=True)
class PrunerConfig:
    """DiffFP, VideoLLaMA3's differential frame pruner."""

    threshold: float = 0.1  # mean |difference| of a token's normalised pixels, times 255
    keep: Literal["first", "last"] = "first"  # of two alike tokens: the older (as released) or the newer (as the paper's text)
    reference: Literal["previous", "last_kept"] = "previous"  # what a token is compared with
    where: Literal["after_encoder", "before_encoder"] = "after_encoder"
    min_tokens: int = 1  # tokens kept of a frame where nothing changed
    budgets: tuple[int, ...] = (256, 512, 1024)  # static sizes the kept tokens are compacted into

    def __post_init__(self):
        _one_of("pruner.keep", self.keep, ("first", "last"))
        _one_of("pruner.reference", self.reference, ("previous", "last_kept"))
        _one_of("pruner.where", self.where, ("after_encoder", "before_encoder"))
        _check(self.threshold >= 0, "pruner.threshold", f"must not be negative, is {self.threshold}")
        _check(len(self.budgets) > 0 and list(self.budgets) == sorted(set(self.budgets)), "pruner.budgets", f"must be an ascending list, is {self.budgets}")


@dataclass(frozen=True)
class AdapterConfig:
    """The hierarchical adapter of one level.

    sparse: a window becomes one token, in the light of the question. temporal: the same encoder, but a token a frame. dense: linear.
    mlp: VideoLLaMA3's projector.
    """

    kind: Literal["dense", "sparse", "temporal", "mlp"] = "dense"
    width: int = 768  # D: what comes in
    inner: int = 0  # sparse, temporal: width of the encoder where frames and question are projected to it first (no projection follows then); 0 = width
    norm: Literal["none", "applied", "skipped"] = "none"  # dense, sparse, temporal: a LayerNorm over what comes out; skipped: kept, but not used
    heads: int = 8
    mlp: int = 2048
    text_layers: int = 2
    self_layers: int = 2
    dropout: float = 0.1

    def __post_init__(self):
        _one_of("adapter.kind", self.kind, ("dense", "sparse", "temporal", "mlp"))
        _one_of("adapter.norm", self.norm, ("none", "applied", "skipped"))
        _check(self.norm == "none" or self.kind != "mlp", "adapter.norm", "an mlp has none")
        _check(self.inner >= 0, "adapter.inner", f"must not be negative, is {self.inner}")
        _check(not self.reads_query or self.encoder % self.heads == 0, "adapter.heads", f"width {self.encoder} does not divide into {self.heads} heads")
        _check(0 <= self.dropout < 1, "adapter.dropout", f"must lie in [0, 1), is {self.dropout}")

    @property
    def reads_query(self) -> bool:
        """Whether its tokens depend on the question."""
        return self.kind in ("sparse", "temporal")

    @property
    def encoder(self) -> int:
        """Width of the encoder, and of the summaries that a nested level reads."""
        return self.inner or self.width


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.05
    rank_stabilised: bool = False  # rsLoRA: alpha / sqrt(rank)

    def __post_init__(self):
        _check(self.rank >= 0, "lora.rank", f"must not be negative, is {self.rank}")

    @property
    def scale(self) -> float:
        if self.rank == 0:
            return 0.0
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class DecoderConfig:
    """LLaMA-2 / Vicuna and Qwen2 / 2.5 by numbers alone."""

    vocab: int = 32000
    width: int = 4096  # H
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    mlp: int = 11008
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    tie_embeddings: bool = False
    lora: LoraConfig = LoraConfig()
    signal: SignalConfig = SignalConfig()
    time: Literal["none", "sinusoidal", "token"] = "none"  # absolute time of a visual token: sinusoid of its index, or the embedding of its number's token
    scan: bool = True  # nn.scan over the layers in training; decoding is unrolled
    # What the backward pass computes again of each layer, here and in an encoder that is trained with it (models/remat.py); older configs say false or true.
    remat: Literal["none", "dots", "full", False, True] = "none"
    attention: Literal["xla", "cudnn", "splash"] = "xla"  # cudnn: GPUs; splash: TPUs, without search signal
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of activations

    def __post_init__(self):
        w = "decoder"
        if isinstance(self.remat, bool):
            object.__setattr__(self, "remat", "full" if self.remat else "none")
        _one_of(f"{w}.remat", self.remat, ("none", "dots", "full"))
        _positive(w, vocab=self.vocab, width=self.width, layers=self.layers, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, mlp=self.mlp)
        _check(self.heads % self.kv_heads == 0, f"{w}.kv_heads", f"{self.heads} heads do not divide into {self.kv_heads} KV heads")
        _check(self.head_dim % 2 == 0, f"{w}.head_dim", f"must be even for RoPE, is {self.head_dim}")
        _one_of(f"{w}.time", self.time, ("none", "sinusoidal", "token"))
        _one_of(f"{w}.attention", self.attention, ("xla", "cudnn", "splash"))
        _check(self.attention != "splash" or not self.signal.enabled, f"{w}.attention", "'splash' has no bias, which the search signal is: use 'xla'")
        _one_of(f"{w}.dtype", self.dtype, ("float32", "bfloat16", "float16"))


# ------------------------------------------------------------------------------------------------------------------------- answering


@dataclass(frozen=True)
class PromptConfig:
    """Texts of one level. `before` + visual tokens + `after` + answer; exact strings, nothing is added."""

    before: str = ""
    after: str = "during which frames can we see {query} ?"  # {query} is lower-cased, stripped, without its final period
    answer: str = "from {start} to {end} ."
    absent: str = "not present ."
    yes: str = "yes ."
    no: str = "no ."
    presence: str = "does {query} happen in the video ?"  # the question of stage 1-B
    digits: int = 1  # numbers are padded with zeros to at least this many digits
    # What the two numbers name. inclusive: the first and the last frame or window. exclusive: the first, and the one behind the last.
    # instant: the times of two frames, between which it happens. single: there is one number alone, such as a video's.
    end: Literal["inclusive", "exclusive", "instant", "single"] = "inclusive"

    def __post_init__(self):
        _check("{query}" in self.after, "prompt.after", "must contain {query}")
        _one_of("prompt.end", self.end, ("inclusive", "exclusive", "instant", "single"))
        wanted = ("{start}",) if self.end == "single" else ("{start}", "{end}")
        _check(all(name in self.answer for name in wanted), "prompt.answer", f"must contain {' and '.join(wanted)}")
        _check(self.end != "single" or "{end}" not in self.answer, "prompt.answer", "names one number (prompt.end='single') and must not contain {end}")


@dataclass(frozen=True)
class LevelConfig:
    """One level of the search, coarse to fine. A hierarchy is a tuple of them.

    sparse: a visual token is a whole window of `span_s`, a new one every `stride_s`; `tokens` windows make a group, one call each.
    nested: a visual token is a run of `tokens` sparse tokens of the level below it (sparse tokens of sparse tokens).
    dense: a visual token is a frame; one window of `span_s` a call, `tokens` frames in it.
    patch: the visual tokens are the kept patches of `tokens` frames in `span_s` seconds around a boundary, at most `budget` of them.
    video: a visual token is a whole video, `tokens` of them are asked together which of them it is; no part of the search within one.
    """

    name: str = "dense"
    kind: Literal["sparse", "nested", "dense", "patch", "video"] = "dense"
    span_s: float = 120.0
    stride_s: float = 60.0
    tokens: int = 120  # numbers the level can name: windows of a group, or frames of a window
    frames: int = 0  # sparse, video: frames of one window (of a video) that the adapter sees
    # Which frames of a window its slots show. even: the first at its start, the last one slot before its end. linspace: ReVisionLLM's, from its start to its
    # end, both included, cut to whole numbers of stored frames.
    sampling: Literal["even", "linspace"] = "even"
    batch: int = 8  # groups or windows of one device call
    zooms: tuple[int, ...] = (1,)  # sparse, nested: the windows are also asked about in groups of tokens // z, each window shown z times in a row
    beam: int = 8  # candidates kept for the next level
    beam_share: float = 0.0  # sparse, nested: at least this share of the windows is kept, so that a long film keeps more of them than `beam`
    spans: int = 4  # spans decoded from one group or window (beam width)
    budget: int = 0  # patch: visual tokens of one call
    min_duration_s: float = 0.0  # the level is left out for videos shorter than this
    baseline: bool = False  # no part of the search: trained and kept to be compared with, such as one flat pass over a whole video
    adapter: AdapterConfig = AdapterConfig()
    prompt: PromptConfig = PromptConfig()

    def __post_init__(self):
        w = f"levels.{self.name}"
        _one_of(f"{w}.kind", self.kind, ("sparse", "nested", "dense", "patch", "video"))
        _one_of(f"{w}.sampling", self.sampling, ("even", "linspace"))
        _check(self.sampling == "even" or self.kind != "patch", f"{w}.sampling", "a patch level's frames are stored ones, side by side: 'even'")
        _positive(w, span_s=self.span_s, stride_s=self.stride_s, tokens=self.tokens, batch=self.batch, beam=self.beam, spans=self.spans)
        _check(0 <= self.beam_share <= 1, f"{w}.beam_share", f"must lie in [0, 1], is {self.beam_share}")
        _check(self.kind not in ("sparse", "video") or self.frames > 0, f"{w}.frames", f"a {self.kind} level needs the frames of a window")
        _check(self.kind != "patch" or self.budget > 0, f"{w}.budget", "a patch level needs a token budget")
        allowed = bool(self.zooms) and all(1 <= zoom <= self.tokens for zoom in self.zooms)
        _check(allowed, f"{w}.zooms", f"must be numbers from 1 to tokens ({self.tokens}), are {self.zooms}")
        _check(self.adapter.kind != "temporal" or self.kind == "dense", f"{w}.adapter.kind", "'temporal' gives a token a frame: for dense levels alone")
        _check(self.stride_s <= self.span_s, f"{w}.stride_s", f"{self.stride_s} s leaves gaps between windows of {self.span_s} s")

    @property
    def searched(self) -> bool:
        """Whether the level is a part of the search within a video."""
        return not self.baseline and self.kind != "video"

    @property
    def rate(self) -> float:
        """Frames per second that the level looks at (dense and patch levels)."""
        return self.tokens / self.span_s

    def run_length(self, nested: LevelConfig) -> int:
        """How many of this sparse level's windows make one token of the `nested` level above it."""
        return max(1, round(nested.span_s / self.stride_s))


@dataclass(frozen=True)
class GroundingConfig:
    levels: tuple[LevelConfig, ...] = ()
    rate: float = 1.0  # frames per second of the feature store
    query_len: int = 32  # S: text-tower positions of a query
    prompt_len: int = 48  # S: decoder positions of the text after the visual tokens (question), padded
    answer_len: int = 8  # S: decoder positions of the answer, end token included
    merge: Literal["nms", "soft_nms"] = "nms"
    merge_iou: float = 0.4
    retrieval: float = 0.2  # share of a window's similarity to the question in its rank; the rest is what the decoder says of it
    confidence: Literal["entropy", "max_entropy", "log_probability", "presence", "calibrated"] = "calibrated"
    threshold: float = 0.5
    prefix_cache_mb: int = 512

    def __post_init__(self):
        w = "grounding"
        _positive(w, rate=self.rate, query_len=self.query_len, prompt_len=self.prompt_len, answer_len=self.answer_len)
        _one_of(f"{w}.merge", self.merge, ("nms", "soft_nms"))
        _check(0 < self.merge_iou <= 1, f"{w}.merge_iou", f"must lie in (0, 1], is {self.merge_iou}")
        _check(0 <= self.retrieval <= 1, f"{w}.retrieval", f"must lie in [0, 1], is {self.retrieval}")
        _check(0 <= self.threshold <= 1, f"{w}.threshold", f"must lie in [0, 1], is {self.threshold}")
        names = [level.name for level in self.levels]
        _check(len(names) == len(set(names)), f"{w}.levels", f"names must differ, are {names}")

    def level(self, name: str) -> LevelConfig:
        for level in self.levels:
            if level.name == name:
                return level
        raise ConfigError(f"grounding.levels: no level {name!r}; there are {', '.join(level.name for level in self.levels) or 'none'}")

    def below(self, name: str) -> LevelConfig:
        """The sparse level whose tokens the nested level `name` is made of: the next one after it."""
        names = [level.name for level in self.levels]
        for level in self.levels[names.index(name) + 1 :]:
            if level.kind == "sparse":
                return level
        raise ConfigError(f"levels.{name}: a nested level needs a sparse level after it")


# -------------------------------------------------------------------------------------------------------------------------- training


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
    negatives: tuple[tuple[str, float], ...] = (("random", 0.5), ("hard", 0.5))  # of `example_config.NEGATIVES`, with weights
    absent_weight: float = 1.0  # weight of absent examples in the loss
    windows: int = 0  # sparse: windows of one example (0 = the level's tokens)
    caption_len: int = 24  # pretrain, language: S, text-tower positions of a caption
    keep: float = 1.0  # pretrain: share of an image's blocks of patches that are encoded, those with the most contrast
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
        for name in ("absent", "cut", "crop"):
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


# ------------------------------------------------------------------------------------------------------------------------ everything


@dataclass(frozen=True)
class ExperimentConfig:
    name: str = "experiment"
    vision: VisionConfig = VisionConfig()  # frame vectors and tokens of the feature store: all levels but, where it has an encoder of its own, the patch level
    patch_vision: VisionConfig | None = None  # the patch level's own encoder; None: `vision` serves all levels
    text: TextConfig | None = TextConfig()  # None: no text tower (VideoLLaMA3 alone); such a model chats, but its sparse levels cannot search
    pruner: PrunerConfig = PrunerConfig()
    decoder: DecoderConfig = DecoderConfig()
    grounding: GroundingConfig = GroundingConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        if self.decoder.signal.enabled:
            _check(self.text is not None, "text", "the search signal compares frames with the query: it needs a text tower")
            _check(
                self.vision.output == self.text.projection,
                "text.projection",
                f"{self.text.projection} differs from the frame vectors' width {self.vision.output}: the search signal compares them",
            )
        if self.patch_vision is not None:
            _check(not self.patch_vision.projection, "patch_vision.projection", "must be 0: the patch level's tokens go to its adapter as they are")
            for level in self.grounding.levels:
                wide = self.patch_vision.output
                fits = level.kind != "patch" or level.adapter.width == wide
                _check(fits, f"levels.{level.name}.adapter.width", f"{level.adapter.width} differs from the patch encoder's {wide}")
        names = {level.name for level in self.grounding.levels}
        for stage in self.train.stages:
            _check(
                stage.task in ("pretrain", "language") or stage.level in names,
                f"stages.{stage.name}.level",
                f"{stage.level!r} is not a level; there are {', '.join(sorted(names)) or 'none'}",
            )
            if stage.task == "conversation":
                self._check_conversation(stage)

    def _check_conversation(self, stage: StageConfig) -> None:
        where = f"stages.{stage.name}"
        adapter, vision = self.grounding.level(stage.level).adapter, self.encoder(self.patch_encoder)
        _check(adapter.kind == "mlp", f"{where}.level", f"{stage.level}: conversations need a level with an 'mlp' adapter, VideoLLaMA3's projector")
        _check(vision.position == "rope2d", f"{self.patch_encoder}.position", f"conversations show pictures of any size: 'rope2d', not {vision.position!r}")
        _check(not vision.projection, f"{self.patch_encoder}.projection", "must be 0: the projector reads the encoder's tokens as they are")
        _check(adapter.width == vision.width, f"levels.{stage.level}.adapter.width", f"{adapter.width} differs from the encoder's {vision.width}")
        loras = [prefix for prefix in stage.train if prefix.startswith("lora")]
        _check(not loras, f"{where}.train", f"{', '.join(loras)}: conversations are answered by the bare decoder, which no LoRA is part of")

    @property
    def patch_encoder(self) -> str:
        """Which encoder the patch level looks with: the name of its config and of its parameters under "params"."""
        return "vision" if self.patch_vision is None else "patch_vision"

    def encoder(self, name: str) -> VisionConfig:
        """The config of "vision" or "patch_vision". Raises ConfigError where the model has no such encoder."""
        found = {"vision": self.vision, "patch_vision": self.patch_vision}.get(name)
        _check(found is not None, name, "this model has no such encoder")
        return found

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, sort_keys=True)

    @staticmethod
    def from_dict(values: dict, where: str = "config") -> ExperimentConfig:
        return _build(ExperimentConfig, values, where)


Config = TypeVar("Config")


def override(config: Config, assignments: list[str] | tuple[str, ...]) -> Config:
    """A config (any frozen dataclass) with dotted overrides, such as `train.seed=3`, `train.stages.1.steps=100` or `train.stages.1a.steps=100` (by name).

    Values are JSON, or plain text where they are not. Raises ConfigError for a field that does not exist.
    """
    values = dataclasses.asdict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        _check(bool(equals), assignment, "an override is written field.name=value")
        try:
            new = json.loads(text)
        except json.JSONDecodeError:
            new = text
        node: Any = values
        keys = path.split(".")
        for depth, key in enumerate(keys):
            where = ".".join(keys[: depth + 1])
            if isinstance(node, (list, tuple)):
                names = [item.get("name") if isinstance(item, dict) else None for item in node]
                index = names.index(key) if key in names else int(key) if key.isdigit() and int(key) < len(node) else None
                _check(index is not None, where, f"no such item; there are {', '.join(str(n) for n in names)}")
                key = index
            else:
                _check(isinstance(node, dict) and key in node, where, f"unknown field; known are {', '.join(node) if isinstance(node, dict) else 'none'}")
            if depth == len(keys) - 1:
                node[key] = new
            else:
                if isinstance(node[key], tuple):
                    node[key] = list(node[key])
                node = node[key]
    return _build(type(config), values, "config")
