"""Saying no: how well present questions are told from absent ones, and at which confidence to draw the line.

A question's score is the confidence of its best candidate (0 without one). It is refused when no candidate is accepted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float


def rejection_f1(refused: float, answered: float) -> float:
    """RejF1 = 100 * 2 r P / (r + P).

    r (`refused`) is the share of absent questions (near misses among them) that are refused, P (`answered`, PosCov) the share of
    present questions that get an answer, right or wrong. Both in [0, 1]; 0 when both are 0. Source: CoMET-Bench.
    """
    total = refused + answered
    return 0.0 if total <= 0 else 100.0 * 2.0 * refused * answered / total


def auroc(score: Float[np.ndarray, "n"], present: Bool[np.ndarray, "n"]) -> float:
    """Chance that a present question scores above an absent one, ties counting half; NaN unless there are both.

    Source: Hanley and McNeil, Radiology 1982: the Mann-Whitney statistic over the number of pairs.
    """
    score, present = np.asarray(score, dtype=np.float64), np.asarray(present, dtype=bool)
    positive, negative = score[present], np.sort(score[~present])
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    below = np.searchsorted(negative, positive, side="left")
    upto = np.searchsorted(negative, positive, side="right")
    return float((below + upto).mean() / (2 * len(negative)))


def risk_coverage(score: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Risk at coverage 1 / n, 2 / n .. 1: the share of wrong answers among those with the highest scores. Its mean is AURC.

    Questions of one score have no order: each point inside such a group is what a random order gives on average. Source: El-Yaniv and Wiener, JMLR 2010;
    AURC: Geifman, Uziel and El-Yaniv (arXiv 1805.08206). An absent question's answer is wrong whatever it is, so refusing it lowers the risk.
    """
    score, wrong = np.asarray(score, dtype=np.float64), 1.0 - np.asarray(correct, dtype=np.float64)
    _, group = np.unique(-score, return_inverse=True)
    mean = np.bincount(group, wrong) / np.maximum(np.bincount(group), 1)
    return np.cumsum(mean[np.sort(group)]) / np.arange(1, len(score) + 1)


def false_alarm_threshold(score: Float[np.ndarray, "n"], hours: float, limit: float) -> float:
    """The least threshold at which at most `limit` candidates an hour are accepted, of absent questions' candidates in `hours` of video. In [0, 1].

    score: confidences in [0, 1] of all these candidates; accepted means score >= threshold. Between two neighbouring scores nothing changes, and the middle is
    taken. Raises ValueError where even the highest threshold accepts more, for scores of 1.
    """
    score, allowed = np.sort(np.asarray(score, dtype=np.float64))[::-1], int(np.floor(limit * hours + 1e-9))
    if len(score) <= allowed:
        return 0.0
    above = score[score > score[allowed]]
    if score[allowed] >= 1.0:
        raise ValueError(f"{int((score >= 1.0).sum())} false alarms in {hours:.3g} hours have confidence 1, {allowed} are allowed")
    return float((score[allowed] + (above.min() if len(above) else 1.0)) / 2)


def fit_threshold(score: Float[np.ndarray, "n"], present: Bool[np.ndarray, "n"]) -> tuple[float, float]:
    """The threshold in [0, 1] with the highest RejF1 on these questions, and that RejF1. Accepted means score >= threshold.

    Raises ValueError unless there are present and absent questions.
    """
    score, present = np.asarray(score, dtype=np.float64), np.asarray(present, dtype=bool)
    if not present.any() or present.all():
        raise ValueError(f"a threshold needs present and absent questions, got {int(present.sum())} present of {len(present)}")
    return best_threshold(score, lambda least: rejection_f1(float((score[~present] < least).mean()), float((score[present] >= least).mean())))


def best_threshold(score: Float[np.ndarray, "n"], value: Callable[[float], float]) -> tuple[float, float]:
    """The threshold in [0, 1] on these scores with the highest `value`, and that value.

    Between two neighbouring scores nothing changes: the middle of the widest interval among the best is taken, which is where an unseen
    score is least likely to fall on the wrong side.
    """
    edges = np.unique(np.concatenate([[0.0], np.clip(score, 0.0, 1.0), [1.0]]))
    # A threshold t in (edges[i], edges[i + 1]] accepts exactly the scores of at least edges[i + 1].
    values = [value(high) for high in edges[1:]]
    best = max(values)
    ties = np.flatnonzero(np.asarray(values) >= best - 1e-9)
    runs = np.split(ties, np.flatnonzero(np.diff(ties) > 1) + 1)  # intervals that touch are one
    low, high = max(((edges[run[0]], edges[run[-1] + 1]) for run in runs), key=lambda ends: ends[1] - ends[0])
    return float((low + high) / 2), float(best)
