"""Deciding fairly where no threshold was fitted: each half of the films by a threshold fitted on the other half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from revision_jax.evaluation import rejection
from revision_jax.evaluation.outcome import Outcome, with_threshold


def fairly_decided(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same answers, accepted from the confidence up that has the highest RejF1 on the films of the other half; as they are where a half has no present or
    no absent question."""
    halves = {video: number % 2 for number, video in enumerate(sorted({outcome.video for outcome in outcomes}))}
    thresholds = [_fitted([outcome for outcome in outcomes if halves[outcome.video] != half]) for half in (0, 1)]
    if None in thresholds:
        return list(outcomes)
    return [with_threshold(outcome, thresholds[halves[outcome.video]]) for outcome in outcomes]


def _fitted(outcomes: Sequence[Outcome]) -> float | None:
    present = np.asarray([outcome.present for outcome in outcomes], bool)
    if not present.any() or present.all():
        return None
    return rejection.fit_threshold(np.asarray([outcome.confidence for outcome in outcomes]), present)[0]
