"""From one number a question to one figure a run, with bootstrap intervals and the paired comparison of two runs.

Every figure is a function of (columns, weights): weights of one give the figure itself, and a resample of the questions is nothing but
other weights (how often each question was drawn). So the interval and the comparison use the very code that makes the figure.

Units: R@k, mIoU, mAP, F1, tF1, EtF1, count_accuracy, RejF1, FPR, refused, answered, window_recall(_all, @k), oracle_window_mIoU and survivors_share in
percent; AUROC, AUROC_right, AURC, ECE and Brier in [0, 1]; false_alarms_per_hour of video; seconds in seconds; prompts and tokens a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from revision_jax.evaluation import calibration, moments
from revision_jax.evaluation.outcome import CORRECT_IOUS, WINDOW_RANKS, Outcome, columns

Columns = dict[str, Float[np.ndarray, "n"]]
Weighted = Callable[[Columns, Float[np.ndarray, "r n"]], dict[str, Float[np.ndarray, "r"]]]
RECALLS = tuple(f"R{rank}@{iou}" for rank in moments.RECALL_RANKS for iou in moments.RECALL_IOUS)
PRECISIONS = ("mAP", "mAP@0.5", "mAP@0.75", *(f"mAP_{name}" for name in moments.LENGTHS))
WINDOW_RECALLS = tuple(f"window_recall@{rank}" for rank in WINDOW_RANKS)
PERCENT = (
    *RECALLS, "mIoU", *PRECISIONS, "F1@0.5", "tF1", "count_accuracy", "answered", "refused", "window_recall", "window_recall_all", *WINDOW_RECALLS,
    "survivors_share", "oracle_window_mIoU",
)  # fmt: skip
COST = ("seconds", "prompts", "tokens")  # of a question
RESAMPLES = 10_000
CHUNK, CELLS = 500, 10_000_000  # resamples at a time, and resamples x questions: bounds memory
LOWER_IS_BETTER = ("FPR", "false_alarms_per_hour", "AURC", "Brier", "ECE", *tuple(f"ECE@{iou}" for iou in CORRECT_IOUS), "survivors_share", *COST)


def _mean(column: Float[np.ndarray, "n"], weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
    known = ~np.isnan(column)
    total = weights[:, known].sum(axis=1)
    return np.divide(weights[:, known] @ column[known], total, out=np.full(len(weights), np.nan), where=total > 0)


def _auroc(confidence: np.ndarray, present: np.ndarray, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
    yes, no = present > 0, ~(present > 0)
    wins = (confidence[yes][:, None] > confidence[no][None, :]) + 0.5 * (confidence[yes][:, None] == confidence[no][None, :])
    pairs = weights[:, yes].sum(axis=1) * weights[:, no].sum(axis=1)
    return np.divide(((weights[:, yes] @ wins) * weights[:, no]).sum(axis=1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _ece(confidence: np.ndarray, correct: np.ndarray, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
    known = ~np.isnan(confidence)
    confidence, correct, weights = confidence[known], correct[known], weights[:, known]
    one_hot = np.eye(calibration.BINS)[calibration.bin_index(confidence)]
    gaps = weights @ (one_hot * (correct - confidence)[:, None])
    total = weights.sum(axis=1)
    return np.divide(np.abs(gaps).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def _aurc(confidence: np.ndarray, correct: np.ndarray, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
    """The mean of `rejection.risk_coverage`; weights are whole numbers.

    W questions of one confidence, E of them wrong, behind n better ones of which e are wrong, have the risks (e + j E / W) / (n + j) for j = 1 .. W:
    together E + (e - n E / W) (H(n + W) - H(n)), with the harmonic numbers H.
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=np.inf))  # of the groups of equal confidence
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    wrong = np.add.reduceat(weights[:, order] * (1.0 - correct[order]), starts, axis=1)
    through = np.cumsum(count, axis=1)
    before, wrong_before = through - count, np.cumsum(wrong, axis=1) - wrong
    total = weights.sum(axis=1)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(total.max(initial=0)) + 1))])
    share = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    steps = harmonic[np.rint(through).astype(int)] - harmonic[np.rint(before).astype(int)]
    risks = wrong + (wrong_before - before * share) * steps
    return np.divide(risks.sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted(table: dict[str, Float[np.ndarray, "n"]], weights: Float[np.ndarray, "r n"]) -> dict[str, Float[np.ndarray, "r"]]:
    """Every figure under every row of weights; NaN where no question of the needed kind has weight.

    EtF1 = 100 * count accuracy * mean tF1 over the present questions (OMTG-Bench). RejF1 as in `rejection.rejection_f1`; FPR is the share of absent
    questions that get an answer (CoMET-Bench). AUROC_right: of present questions, whether the first candidate's IoU
    is above 0.5, by its confidence. AURC, ECE and Brier are about the first candidate, correct = IoU above 0.5 (ECE@t: above t).
    """
    weights = np.asarray(weights, dtype=np.float64)
    plain = {name: _mean(table[name], weights) for name in PERCENT}
    result = {name: 100.0 * value for name, value in plain.items()}
    result["EtF1"] = 100.0 * plain["count_accuracy"] * plain["tF1"]
    both = plain["refused"] + plain["answered"]
    result["RejF1"] = np.where(both > 0, 100.0 * 2.0 * plain["refused"] * plain["answered"] / np.where(both > 0, both, 1.0), both * 0.0)
    result["FPR"] = 100.0 - result["refused"]
    hours = _mean(table["absent_hours"], weights)
    result["false_alarms_per_hour"] = np.divide(_mean(table["false_alarms"], weights), hours, out=np.full(len(weights), np.nan), where=hours > 0)
    result["AUROC"] = _auroc(table["confidence"], table["present"], weights)
    correct = table[f"correct@{CORRECT_IOUS[-1]}"]
    yes = table["present"] > 0
    result["AUROC_right"] = _auroc(table["confidence"][yes], correct[yes], weights[:, yes])
    result["AURC"] = _aurc(table["confidence"], correct, weights)
    for iou in CORRECT_IOUS:
        result[f"ECE@{iou}"] = _ece(table["probability"], table[f"correct@{iou}"], weights)
    result["ECE"] = result[f"ECE@{CORRECT_IOUS[-1]}"]
    result["Brier"] = _mean((table["probability"] - correct) ** 2, weights)
    return result | {name: _mean(table[name], weights) for name in COST}


def figures(outcomes: list[Outcome]) -> dict[str, float | None]:
    """All figures of these questions; None where none of them has what a figure needs."""
    if not outcomes:
        return {}
    values = weighted(columns(outcomes), np.ones((1, len(outcomes))))
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()}


def _resamples(questions: int, resamples: int, seed: int, runs: int = 1) -> Iterator[Float[np.ndarray, "r n"]]:
    """How often each question was drawn, [r, questions]; of several runs [r, runs * questions], runs being drawn as well."""
    generator = np.random.default_rng(seed)
    chunk = min(CHUNK, max(1, CELLS // (questions * runs)))
    draw = lambda things, size: generator.multinomial(things, np.full(things, 1.0 / things), size=size).astype(np.float64)
    for begin in range(0, resamples, chunk):
        size = min(chunk, resamples - begin)
        drawn = draw(questions, size)
        yield drawn if runs == 1 else (draw(runs, size)[:, :, None] * drawn[:, None, :]).reshape(size, -1)


def over_runs(weighted: Weighted, runs: int) -> Weighted:
    """Figures of `runs` runs of the same questions (columns one run after the other): the mean of the runs' own, weighted as they were drawn."""
    if runs == 1:
        return weighted

    def mean(table: Columns, weights: Float[np.ndarray, "r n"]) -> dict[str, Float[np.ndarray, "r"]]:
        parts = np.split(np.arange(weights.shape[1]), runs)
        shares = np.stack([weights[:, part].sum(1) for part in parts])
        values = [weighted({name: column[part] for name, column in table.items()}, weights[:, part]) for part in parts]
        mixed = lambda name: np.where(shares > 0, shares * np.stack([value[name] for value in values]), 0.0).sum(0) / shares.sum(0)
        return {name: mixed(name) for name in values[0]}

    return mean


def _interval(samples: Float[np.ndarray, "r"], level: float) -> tuple[float, float] | None:
    samples = samples[~np.isnan(samples)]
    if len(samples) == 0:
        return None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(outcomes: list[Outcome], *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float] | None]:
    """Bootstrap percentile interval of every figure, resampling questions with replacement; the same seed gives the same interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    return bootstrap(columns(outcomes), weighted, resamples=resamples, seed=seed, level=level) if outcomes else {}


def bootstrap(
    table: Columns, weighted: Weighted, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95, runs: int = 1
) -> dict[str, tuple[float, float] | None]:
    """`intervals` of any figures that are a function of columns and weights. runs: the columns are those of so many runs of the same questions, one after the
    other, with `over_runs`'s figures; runs are resampled too."""
    return {name: _interval(samples, level) for name, samples in _samples(table, weighted, resamples, seed, runs).items()}


def _samples(table: Columns, weighted: Weighted, resamples: int, seed: int, runs: int) -> dict[str, Float[np.ndarray, "r"]]:
    weighted, questions = over_runs(weighted, runs), len(next(iter(table.values()))) // runs
    parts = [weighted(table, weights) for weights in _resamples(questions, resamples, seed, runs)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def paired_bootstrap(
    first: list[Outcome], second: list[Outcome], *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | bool | None]]:
    """`first` against `second` on the same questions, in the same order.

    A figure: {"first", "second", "difference" (first - second), "low", "high" (its interval at `level`), "p" (two-sided: twice the share
    of resamples whose difference has the other sign or none), "better" (the interval excludes 0 on `first`'s side), "worse"}.
    Raises ValueError when the questions differ. Source: Efron and Tibshirani (1993), chapters 13 and 15; paired as in Koehn, EMNLP 2004.
    """
    if [outcome.key for outcome in first] != [outcome.key for outcome in second]:
        raise ValueError("a paired comparison needs the same questions in the same order")
    if not first:
        raise ValueError("a paired comparison needs at least one question")
    return paired(columns(first), columns(second), weighted, LOWER_IS_BETTER, resamples=resamples, seed=seed, level=level)


def paired(
    first: Columns, second: dict[str, Float[np.ndarray, "m"]], weighted: Weighted, lower_is_better: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0,
    level: float = 0.95, runs: int = 1, same: bool = True,
) -> dict[str, dict[str, float | bool | None]]:
    """`paired_bootstrap` of any figures that are a function of columns and weights. runs: as for `bootstrap`, paired run by run. same: whether these are the
    same questions; if not, each side is resampled by itself."""
    points = [over_runs(weighted, runs)(table, np.ones((1, len(next(iter(table.values())))))) for table in (first, second)]
    drawn = [_samples(table, weighted, resamples, seed + side * (not same), runs) for side, table in enumerate((first, second))]
    result = {}
    for name in drawn[0]:
        a, b = (float(point[name][0]) for point in points)
        samples = drawn[0][name] - drawn[1][name]
        interval = _interval(samples, level)
        if interval is None or np.isnan(a) or np.isnan(b):
            continue
        sign = -1.0 if name in lower_is_better else 1.0
        known = samples[~np.isnan(samples)]
        p = min(1.0, 2.0 * float(min((known <= 0).mean(), (known >= 0).mean())))
        gain = sorted((sign * interval[0], sign * interval[1]))
        result[name] = {
            "first": a, "second": b, "difference": a - b, "low": interval[0], "high": interval[1], "p": p, "better": gain[0] > 0, "worse": gain[1] < 0,
        }  # fmt: skip
    return result
