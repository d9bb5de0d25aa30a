"""What went wrong, worst first, and at which step: made from the answers of a run alone.

A question is wrong where an absent one was accepted, where a present one was refused, and where the first answer of a present one has an IoU below 0.5. What it
costs is how wrong it is times how sure the answer was: a confident wrong answer is worst. Each fails at one step, the first that failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from revision_jax.evaluation import moments, retrieval
from revision_jax.evaluation.outcome import Outcome

RIGHT = 0.5  # least IoU of an answer that is right
CAUSES = {  # in the order of the steps
    "search": "the right window did not survive the first level",
    "localisation": "the right window was looked at, but no candidate is right",
    "ranking": "a right candidate stands behind a wrong one",
    "rejection": "something absent was accepted, or the right candidate refused",
}


@dataclass(frozen=True)
class Judged:
    """An answered question with what was made of it. Spans in seconds; IoU, confidence and loss in [0, 1]."""

    outcome: Outcome

    @cached_property
    def first(self) -> tuple[float, float, float, bool] | None:
        """What is judged: the most confident of the accepted moments, of a refusal the most confident candidate. None without a candidate."""
        return max(self.outcome.moments, key=lambda moment: (moment[3], moment[2]), default=None)

    @property
    def refused(self) -> bool:
        return self.first is None or not self.first[3]

    @cached_property
    def iou(self) -> float:
        """Of `first` with the true moment that it matches best; 0 without either."""
        return moments.top_iou([self.first[:2]] if self.first else [], self.outcome.truth)

    @property
    def wrong(self) -> bool:
        return self.outcome.present if self.refused else self.iou < RIGHT - moments.EPSILON

    @property
    def loss(self) -> float:
        """How wrong (1 for a wrong refusal or acceptance, else 1 - IoU) times how sure (confidence, of a refusal 1 - confidence; 1 where it is none)."""
        if self.refused and not self.outcome.present:
            return 0.0
        confidence = min(max(self.first[2], 0.0), 1.0) if self.first else 0.0
        sure = 1.0 if not self.outcome.probabilities else 1.0 - confidence if self.refused else confidence
        return sure * (1.0 if self.refused else 1.0 - self.iou)

    @property
    def let_through(self) -> tuple[int, int] | None:
        """(true moments whose window survived the first level, true moments); None where nothing is true, or there was no such level."""
        if self.outcome.survivors is None or not self.outcome.present:
            return None
        share = retrieval.window_recall(self.outcome.survivors, self.outcome.truth)[1]
        return round(share * len(self.outcome.truth)), len(self.outcome.truth)

    @property
    def cause(self) -> str:
        """Of a wrong answer, one of CAUSES."""
        if not self.outcome.present:
            return "rejection"
        if self.let_through is not None and not self.let_through[0]:
            return "search"
        matches = moments.best_iou([moment[:2] for moment in self.outcome.moments], self.outcome.truth)
        if not moments.reached(matches, len(matches), RIGHT):
            return "localisation"
        return "ranking" if self.iou < RIGHT - moments.EPSILON else "rejection"

    @property
    def reason(self) -> str:
        """What CAUSES says of the cause, of a rejection which of the two it was."""
        if self.cause == "rejection":
            return "the right candidate was refused" if self.outcome.present else "something absent was accepted"
        return CAUSES[self.cause]

    @property
    def nearest(self) -> tuple[float, float] | None:
        """Of the true moments the one that `first` matches best; the first of them where it matches none."""
        first = [self.first[:2]] if self.first else []
        return max(self.outcome.truth, key=lambda truth: moments.top_iou(first, [truth]), default=None)


def wrong(outcomes: Sequence[Outcome]) -> list[Judged]:
    """All questions that were answered wrong, the greatest loss first; equal ones by video and id."""
    judged = [one for one in map(Judged, outcomes) if one.wrong]
    return sorted(judged, key=lambda one: (-one.loss, *one.outcome.key))


def common(judged: Sequence[Judged]) -> dict[str, Counter[str]]:
    """How many there are of each cause ("all": of any): {cause: {"all" | kind | tag: count}}."""
    return {cause: asked([one.outcome for one in judged if cause in ("all", one.cause)]) for cause in (*CAUSES, "all")}


def asked(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How many questions were asked of each kind and with each tag, and in all: what `common` is to be held against."""
    return Counter(what for outcome in outcomes for what in ("all", outcome.kind, *outcome.tags))
