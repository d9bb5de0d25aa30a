"""How a film is searched: the levels from coarse to fine, their prompts, and what holds for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from revision_jax.config.fields import ConfigError, _check, _one_of, _positive
from revision_jax.config.models import AdapterConfig

WINDOWS = 32  # at most so many windows become sparse tokens in one call
LONG = 64  # positions of a question from which there are programs for half of them too


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
    rest: int = 0  # those of a last call with no more than so many; 0: it is filled up like all others. Programs of its own, worth it for a large decoder
    zooms: tuple[int, ...] = (1,)  # sparse, nested: the windows are also asked about in groups of tokens // z, each window shown z times in a row
    beam: int = 8  # candidates kept for the next level
    beam_share: float = 0.0  # sparse, nested: at least this share of the windows is kept, so that a long film keeps more of them than `beam`
    spans: int = 4  # spans decoded from one group or window (beam width)
    budget: int = 0  # patch: visual tokens of one call
    min_duration_s: float = 0.0  # the level is left out for videos shorter than this
    baseline: bool = False  # no part of the search: trained and kept to be compared with, such as one flat pass over a whole video
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self):
        w = f"levels.{self.name}"
        _one_of(f"{w}.kind", self.kind, ("sparse", "nested", "dense", "patch", "video"))
        _one_of(f"{w}.sampling", self.sampling, ("even", "linspace"))
        _check(self.sampling == "even" or self.kind != "patch", f"{w}.sampling", "a patch level's frames are stored ones, side by side: 'even'")
        _positive(w, span_s=self.span_s, stride_s=self.stride_s, tokens=self.tokens, batch=self.batch, beam=self.beam, spans=self.spans)
        _check(self.rest >= 0, f"{w}.rest", f"must not be negative, is {self.rest}")
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

    @property
    def batches(self) -> tuple[int, ...]:
        """Rows that its calls may have, most first: those behind the last full batch are filled up to the next of them."""
        return (self.batch, self.rest) if 0 < self.rest < self.batch else (self.batch,)

    @property
    def windows(self) -> int:
        """Windows of a group that become sparse tokens in one call: the group in equal parts of at most `WINDOWS`, so that the last one has few pads."""
        return -(-self.tokens // -(-self.tokens // WINDOWS))

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

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """Positions that a question may have when answering, fewest first. Long ones are rare: where there is room for them, most take half of it."""
        return (self.prompt_len // 2, self.prompt_len) if self.prompt_len >= LONG else (self.prompt_len,)

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
