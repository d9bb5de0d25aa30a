"""How a stage's examples are cut out of its films: a part of `StageConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from revision_jax.config.fields import _check, _one_of

# Contrastive examples (data/contrastive.py). random: another window of the film; hard: one that looks like the event; semi_hard: one that a named checkpoint
# took for the answer, but for less than the true one; cross_video: a window of another film; swap: the question with an attribute changed, or one that is
# listed as absent; query_swap: another question, of this film or another.
NEGATIVES = ("random", "hard", "semi_hard", "cross_video", "swap", "query_swap")


@dataclass(frozen=True)
class ExampleConfig:
    # Films and features.
    min_duration_s: float = 0.0  # videos shorter than this are left out
    rate: float = 0.0  # frames per second of the features that are read (0 = grounding.rate) ...
    features: str = ""  # ... and the folder of their stores (empty = data.features)
    # Windows of dense and presence tasks; 0 = as the level has them.
    span_s: float = 0.0
    frames: int = 0
    long_events: Literal["cut", "skip"] = "cut"  # events longer than the window are shown in part, or left out
    # What a sparse group holds. grid: neighbours of the level's grid, as in a search. crops: ReVisionLLM's, random crops around the event, side by side at a
    # random place among random windows of the film.
    groups: Literal["grid", "crops"] = "grid"
    crops: tuple[int, int] = (2, 3)  # fewest and most crops of a group
    zooms: tuple[int, ...] = (1,)  # a sparse group holds windows // z windows, each z times in a row; z is drawn from these
    # Semi-hard negatives.
    scores: str = ""  # the file of windows' scores that launch.score wrote
    scored_by: str = ""  # the checkpoint that the scores must be of, as the file names it

    def __post_init__(self):
        w = "examples"
        _one_of(f"{w}.long_events", self.long_events, ("cut", "skip"))
        _one_of(f"{w}.groups", self.groups, ("grid", "crops"))
        for name in ("min_duration_s", "rate", "span_s", "frames"):
            _check(getattr(self, name) >= 0, f"{w}.{name}", f"must not be negative, is {getattr(self, name)}")
        _check(1 <= self.crops[0] <= self.crops[1], f"{w}.crops", f"must be the fewest and the most crops, at least 1, are {self.crops}")
        _check(bool(self.zooms) and min(self.zooms) >= 1, f"{w}.zooms", f"must be numbers from 1 on, are {self.zooms}")
