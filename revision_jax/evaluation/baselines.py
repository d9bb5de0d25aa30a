"""What the system must beat, asked and judged by the same code: frame retrieval, one flat pass, chance.

    retrieval   the dual encoder's similarity over time, smoothed; a span is where it stays near a peak. On hour-long video this beats every
                monolithic video LLM (ExtremeWhenBench), so it is the baseline that counts. Its two numbers are tuned on validation.
    flat        the whole video resampled to one window of the frame level, one answer: what VTimeLLM does. A checkpoint trained that way has a
                frame level marked `baseline`; one without is asked through its search's frame level.
    random      spans of random place and length

A method gives `Found`s, like the search. Its confidences go through a temperature and its own threshold, fitted on validation as the model's are.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from revision_jax.config import ExperimentConfig, GroundingConfig, PrunerConfig, TrainConfig, override
from revision_jax.data.windows import span_seconds
from revision_jax.errors import UserError
from revision_jax.evaluation import calibration
from revision_jax.grounding.confidence import Calibrator
from revision_jax.grounding.found import Candidate, Found
from revision_jax.grounding.grounder import EncodedVideo, Grounder
from revision_jax.grounding.levels import check_order
from revision_jax.grounding.programs import Programs
from revision_jax.grounding.search import Searcher
from revision_jax.grounding.similarity import frame_similarity

SHORTEST_S, LONGEST_S = 3.0, 90.0  # of random spans: what the world's events last
SMOOTHING_S = (1.0, 3.0, 5.0, 9.0, 15.0)
RELATIVE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Decision:
    """How a method's confidences become probabilities, and from where up a moment is accepted; further: one beside another (None: the same)."""

    temperature: float = 1.0
    threshold: float = 0.5
    further: float | None = None

    @staticmethod
    def of(grounder: Grounder) -> Decision:
        """A checkpoint's own: its confidences are probabilities already."""
        return Decision(threshold=grounder.threshold, further=grounder.further)


@runtime_checkable
class Method(Protocol):
    """One way of answering. `search` gives candidates, best first, for every question of a video."""

    name: str
    decision: Decision

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]: ...

    def settings(self) -> dict[str, Any]:
        """What the answers depend on besides the checkpoint; JSON."""
        ...


@dataclass(frozen=True)
class SpanRule:
    """smooth_s: seconds of a running mean; relative: a span is where the curve stays above this share of the way from its median to the peak."""

    smooth_s: float = 5.0
    relative: float = 0.5


def smooth(level: Float[np.ndarray, "T"], frames: int) -> Float[np.ndarray, "T"]:
    """Running mean over an odd number of frames; at the ends over those there are."""
    frames = max(min(frames | 1, (len(level) - 1) | 1), 1) if len(level) > 1 else 1
    kernel = np.ones(frames)
    return np.convolve(level, kernel, "same") / np.convolve(np.ones(len(level)), kernel, "same") if frames > 1 else np.asarray(level, np.float64)


def spans(level: Float[np.ndarray, "T"], rate: float, rule: SpanRule, top_k: int) -> list[tuple[float, float, float]]:
    """(start_s, end_s, height of the smoothed curve) around its highest peaks, highest first; spans never overlap.

    A peak is taken, extended to both sides while the curve stays above median + relative * (peak - median), cut out, and so on.
    """
    curve = smooth(np.asarray(level, np.float64), round(rule.smooth_s * rate))
    base = float(np.median(curve))
    free = np.ones(len(curve), dtype=bool)
    found = []
    while len(found) < top_k and free.any():
        peak = int(np.argmax(np.where(free, curve, -np.inf)))
        inside = free & (curve >= base + rule.relative * (curve[peak] - base))
        inside[peak] = True
        outside = np.flatnonzero(~inside)
        first = int(outside[outside < peak].max(initial=-1)) + 1
        last = int(outside[outside > peak].min(initial=len(curve))) - 1
        free[first : last + 1] = False
        start, end = span_seconds(first, last, 0.0, rate)
        found.append((max(start, 0.0), min(end, len(curve) / rate), float(np.clip(curve[peak], 0.0, 1.0))))
    return found


@dataclass(frozen=True)
class Retrieval:
    """Frame retrieval with a span rule."""

    rule: SpanRule = SpanRule()
    decision: Decision = Decision()
    name: str = "retrieval"

    def settings(self) -> dict[str, Any]:
        return {"rule": asdict(self.rule), **asdict(self.decision)}

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]:
        began = time.perf_counter()
        levels = frame_similarity(grounder.programs, video.source, [grounder.programs.question(query) for query in queries])
        rows = [spans(level, video.source.rate, self.rule, top_k) for level in levels]
        return _found(queries, rows, video.duration_s, self.decision, time.perf_counter() - began)


@dataclass(frozen=True)
class Random:
    """Spans of random place and (log-uniform) length with random confidence; the same for the same question of the same video."""

    decision: Decision = Decision()
    seed: int = 0
    name: str = "random"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **asdict(self.decision)}

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]:
        rows = []
        for query in queries:
            key = hashlib.blake2b(f"{self.seed}/{video.source.key}/{query}".encode(), digest_size=8).digest()
            generator = np.random.default_rng(int.from_bytes(key, "little"))
            row = []
            for confidence in sorted(generator.uniform(size=top_k).tolist(), reverse=True):
                lasts = min(math.exp(generator.uniform(math.log(SHORTEST_S), math.log(LONGEST_S))), video.duration_s)
                start = generator.uniform(0.0, video.duration_s - lasts)
                row.append((start, start + lasts, confidence))
            rows.append(row)
        return _found(queries, rows, video.duration_s, self.decision, 0.0)


@dataclass(frozen=True)
class Flat:
    """The whole video in one window of the frame level."""

    decision: Decision = Decision()
    name: str = "flat"

    def settings(self) -> dict[str, Any]:
        return asdict(self.decision)

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]:
        found = grounder.searcher.flat(video.source, list(queries), top_k=top_k)
        return [decided(one, self.decision) for one in found]


@dataclass(frozen=True)
class Model:
    """The system itself, decided by the checkpoint's own calibration (so `decision.temperature` stays 1).

    without: names of levels to leave out, to see what they are worth. The first level left must then look at everything.
    overrides: dotted ones of the config ("grounding.retrieval=0"), of what leaves the weights as they are.
    """

    decision: Decision = Decision()
    without: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    name: str = "model"

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.decision), "without": list(self.without), **({"overrides": list(self.overrides)} if self.overrides else {})}

    def search(self, grounder: Grounder, video: EncodedVideo, queries: Sequence[str], top_k: int) -> list[Found]:
        return self.bounded(grounder).find(video, list(queries), top_k=top_k)

    def bounded(self, grounder: Grounder) -> Grounder:
        """The grounder without those levels, and with these overrides; it shares features, and programs as long as they are the same. Raises UserError for a
        level that is not there, ConfigError for an override that is none."""
        if not self.without and not self.overrides:
            return grounder
        return _bounded(grounder, grounder.calibrator, grounder.programs.queries, self.without, self.overrides)


@functools.lru_cache(maxsize=1)  # one film after the other is asked in the same way
def _bounded(grounder: Grounder, calibrator: Calibrator | None, queries: Any, without: tuple[str, ...], overrides: tuple[str, ...]) -> Grounder:
    changed, programs = copy.copy(grounder), grounder.programs
    changed.config = override(grounder.config, overrides)
    if searched_alike(changed.config) != searched_alike(grounder.config):
        changed.programs = Programs(changed.config, programs.state, programs.tokenizer, programs.text_tokenizer)
        changed.programs.queries = queries
    changed.searcher = Searcher(leave_out(changed.config, without), changed.programs, calibrator)
    return changed


def searched_alike(config: ExperimentConfig) -> ExperimentConfig:
    """The config without what only the search and the patch encoder read: two models with the same one run the same programs of the levels."""
    plain = GroundingConfig()
    levels = tuple(replace(level, beam=1, beam_share=0.0, min_duration_s=0.0, zooms=(1,)) for level in config.grounding.levels)
    names = ("merge", "merge_iou", "retrieval", "confidence", "threshold", "prefix_cache_mb")
    grounding = replace(config.grounding, levels=levels, **{name: getattr(plain, name) for name in names})
    return replace(config, grounding=grounding, pruner=replace(config.pruner, where=PrunerConfig.where), train=TrainConfig())


def leave_out(config: ExperimentConfig, without: Sequence[str]) -> ExperimentConfig:
    """A config with fewer levels. Raises UserError for a level that is not there, ConfigError where the others cannot do without it."""
    names = [level.name for level in config.grounding.levels]
    unknown = sorted(set(without) - set(names))
    if unknown:
        raise UserError(f"--without: no level {unknown[0]!r}; there are {', '.join(names)}")
    levels = tuple(level for level in config.grounding.levels if level.name not in without)
    check_order(levels)
    stages = tuple(stage for stage in config.train.stages if stage.level not in without)  # a stage may not name a level that is gone
    return replace(config, grounding=replace(config.grounding, levels=levels), train=replace(config.train, stages=stages))


BASELINES = ("retrieval", "flat", "random")


def make(name: str | None, grounder: Grounder, stored: dict[str, Any] | None = None, without: Sequence[str] = ()) -> Method:
    """The model (None), without some of its levels or whole, or a baseline by name. stored: `calibration.json` of the checkpoint, whose
    "baselines" hold what was fitted. Raises UserError for an unknown name.
    """
    if name is None:
        return Model(Decision.of(grounder), tuple(sorted(set(without))))
    if name not in BASELINES:
        raise UserError(f"--baseline: {name!r} is not one of {', '.join(BASELINES)}")
    fitted = dict((stored or {}).get("baselines", {}).get(name, {}))
    decision = Decision(float(fitted.get("temperature", 1.0)), float(fitted.get("threshold", 0.5)), fitted.get("further"))
    if name == "retrieval":
        rule = fitted.get("rule", {})
        return Retrieval(SpanRule(float(rule.get("smooth_s", SpanRule.smooth_s)), float(rule.get("relative", SpanRule.relative))), decision)
    return Flat(decision) if name == "flat" else Random(decision)


def decided(found: Found, decision: Decision) -> Found:
    """The same candidates with their confidences through the temperature."""
    confidence = calibration.apply_temperature(np.array([moment.confidence for moment in found.moments]), decision.temperature)
    return replace(found, moments=tuple(replace(m, confidence=float(c)) for m, c in zip(found.moments, confidence, strict=True)))


def _found(queries: Sequence[str], rows: Sequence[Sequence[tuple[float, float, float]]], duration_s: float, decision: Decision, seconds: float) -> list[Found]:
    made = []
    for query, row in zip(queries, rows, strict=True):
        moments = tuple(Candidate(start, min(end, duration_s), confidence) for start, end, confidence in row if start < min(end, duration_s))
        made.append(decided(Found(query, moments, moments, (), {"search": seconds / len(queries)}), decision))
    return made
