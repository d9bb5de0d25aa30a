"""What a search gives back: the moments, and the path that led to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from revision_jax.config import LevelConfig
from revision_jax.grounding.levels import Window, joined


@dataclass(frozen=True)
class Candidate:
    """A span that may be the answer, in seconds; `features` are `confidence.FEATURES`."""

    start_s: float
    end_s: float
    confidence: float
    features: dict[str, float] = field(default_factory=dict, compare=False)
    window: Window | None = None


@dataclass(frozen=True)
class Ranked:
    """A window with its rank score, and what is said about it: log-odds of its group, log-probability of being named."""

    window: Window
    score: float
    present: float = 0.0
    named: float = 0.0


@dataclass
class Trace:
    """What one level did for one question: the path to the answer."""

    level: LevelConfig
    windows: list[Ranked] = field(default_factory=list)
    kept: list[Window] = field(default_factory=list)
    count: int = 0  # windows the level has over the stretch, looked at or not
    calls: int = 0  # device calls that worked on this question
    prompts: int = 0  # sequences that the decoder read for this question: groups, or windows
    tokens: int = 0  # visual tokens in them, padding not counted; of patches those that pruning left
    seconds: float = 0.0
    dropped_tokens: int = 0
    parse_failures: int = 0

    @property
    def survivors(self) -> list[tuple[float, float]]:
        """Seconds that went on to the next level, joined."""
        return joined((window.start_s, window.end_s) for window in self.kept)

    def to_json(self) -> dict:
        kept = set(self.kept)
        shown = lambda w, score: {"start_s": round(w.start_s, 3), "end_s": round(w.end_s, 3), "score": round(min(max(score, 0.0), 1.0), 4), "kept": w in kept}
        return {
            "name": self.level.name, "kind": self.level.kind, "count": self.count, "looked_at": len(self.windows), "kept": len(self.kept), "calls": self.calls,
            "seconds": round(self.seconds, 4), "dropped_tokens": self.dropped_tokens, "parse_failures": self.parse_failures,
            "windows": [shown(ranked.window, ranked.score) for ranked in sorted(self.windows, key=lambda r: r.window)],
        }


@dataclass(frozen=True)
class Found:
    """The answer to one question: `moments` merged and ranked, at most top_k; `candidates` before merging."""

    query: str
    moments: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    levels: tuple[Trace, ...]
    seconds: dict[str, float]

    @property
    def parse_failures(self) -> int:
        return sum(trace.parse_failures for trace in self.levels)
