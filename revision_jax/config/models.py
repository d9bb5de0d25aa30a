"""The networks: encoders, text tower, search signal, pruner, adapters and the decoder with its LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from revision_jax.config.fields import _check, _one_of, _positive


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
