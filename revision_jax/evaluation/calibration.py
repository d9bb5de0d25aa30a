"""Whether a confidence means what it says: calibration error, reliability, temperature.

A confidence is right when, of all answers given with 0.8, eight in ten are correct. Correct is IoU > tau with a true moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

BINS = 10
TINY = 1e-6  # confidences are kept this far from 0 and 1 before a logarithm


@dataclass(frozen=True)
class Reliability:
    """One row a bin of confidence: edges, how many answers, their mean confidence and the share that is correct (NaN when empty)."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


def bin_index(confidence: Float[np.ndarray, "n"], bins: int = BINS) -> np.ndarray:
    """Equal-width bin of each confidence in [0, 1]; bin i is (i / bins, (i + 1) / bins], the first one takes 0 too."""
    confidence = np.asarray(confidence, dtype=np.float64)
    if len(confidence) and (np.nanmin(confidence) < 0 or np.nanmax(confidence) > 1):
        raise ValueError(f"confidences must lie in [0, 1], are in [{np.nanmin(confidence):.4g}, {np.nanmax(confidence):.4g}]")
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def reliability(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = BINS) -> Reliability:
    """The data of a reliability diagram."""
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    where = bin_index(confidence, bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(where, confidence, bins) / np.where(count, count, np.nan)
        share = np.bincount(where, correct, bins) / np.where(count, count, np.nan)
    edges = np.arange(bins + 1) / bins
    return Reliability(tuple(edges[:-1].tolist()), tuple(edges[1:].tolist()), tuple(count.tolist()), tuple(mean.tolist()), tuple(share.tolist()))


def expected_calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = BINS) -> float:
    """ECE: |accuracy - mean confidence| of each bin, weighted by the bin's share of answers; in [0, 1], NaN without answers.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), equations 3 and 5.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if len(confidence) == 0:
        return float("nan")
    gaps = np.bincount(bin_index(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> float:
    """Mean squared difference of confidence and correctness (1 or 0); in [0, 1], NaN without answers. Source: Brier, Monthly Weather Review 1950, in the usual
    form for two outcomes, which is half of his."""
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    return float(np.mean((confidence - correct) ** 2)) if len(confidence) else float("nan")


def logit(probability: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    probability = np.clip(np.asarray(probability, dtype=np.float64), TINY, 1 - TINY)
    return np.log(probability) - np.log1p(-probability)


def apply_temperature(confidence: Float[np.ndarray, "n"], temperature: float) -> Float[np.ndarray, "n"]:
    """sigmoid(logit(confidence) / temperature): above 1 flattens, below 1 sharpens, the order stays."""
    return 1.0 / (1.0 + np.exp(-logit(confidence) / temperature))


def apply_platt(confidence: Float[np.ndarray, "n"], slope: float, shift: float) -> Float[np.ndarray, "n"]:
    """sigmoid(slope * logit(confidence) + shift)."""
    return 1.0 / (1.0 + np.exp(-(slope * logit(confidence) + shift)))


def fit_platt(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], steps: int = 50) -> tuple[float, float]:
    """Slope (at least 0.01, so that the order stays) and shift with the smallest negative log likelihood, by Newton's method with step halving.

    Right answers aim at (r + 1) / (r + 2) and wrong ones at 1 / (w + 2), of r right and w wrong: neither end is ever certain. Source: Platt, 1999, on
    log-odds in place of margins. Raises ValueError without answers.
    """
    x, right = logit(np.atleast_1d(confidence)), np.atleast_1d(np.asarray(correct, bool))
    if not len(x):
        raise ValueError("a calibration needs at least one answer")
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    design, theta = np.stack([x, np.ones_like(x)], 1), np.array([1.0, 0.0])

    def loss(theta: np.ndarray) -> float:
        z = design @ theta
        return float(np.logaddexp(0, z).sum() - target @ z)

    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-(design @ theta)))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(hessian, design.T @ (p - target)), 1.0
        while size > 1e-6 and loss(theta - size * step) > loss(theta):
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    if theta[0] < 0.01:  # confidence says nothing, or the opposite
        return 0.01, float(logit(np.array([target.mean()]))[0] - 0.01 * x.mean())
    return float(theta[0]), float(theta[1])


def fit_isotonic(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> tuple[tuple[float, float], ...]:
    """Knots (confidence, share correct) of a rising curve from (0, 0) to (1, 1), straight between them, as `Calibrator.curve`.

    Pool adjacent violators gives the blocks, each a knot at its mean confidence: the shares are the rising sequence nearest to the answers in squares. Source:
    Barlow et al., 1972; Zadrozny and Elkan, KDD 2002. The straight pieces keep apart what a step function would tie. Raises ValueError without answers.
    """
    confidence, correct = np.atleast_1d(np.asarray(confidence, np.float64)), np.atleast_1d(np.asarray(correct, np.float64))
    if not len(confidence):
        raise ValueError("a calibration needs at least one answer")
    blocks: list[list[float]] = []  # answers, sum of confidences, right ones
    for value in np.unique(confidence):  # equal confidences are one block from the start
        same = confidence == value
        blocks.append([float(same.sum()), float(confidence[same].sum()), float(correct[same].sum())])
        while len(blocks) > 1 and blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    inner = [(x / n, y / n) for n, x, y in blocks if 0 < x / n < 1]
    return ((0.0, 0.0), *inner, (1.0, 1.0))


def apply_curve(confidence: Float[np.ndarray, "n"], curve: tuple[tuple[float, float], ...]) -> Float[np.ndarray, "n"]:
    """Confidences along a curve of knots."""
    return np.interp(np.asarray(confidence, np.float64), *zip(*curve, strict=True))


def negative_log_likelihood(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> float:
    """Mean -log of the probability given to what turned out true."""
    confidence = np.clip(np.asarray(confidence, dtype=np.float64), TINY, 1 - TINY)
    correct = np.asarray(correct, dtype=np.float64)
    return float(-np.mean(correct * np.log(confidence) + (1 - correct) * np.log1p(-confidence)))


def fit_temperature(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], low: float = 0.05, high: float = 20.0) -> float:
    """The temperature in [low, high] with the smallest negative log likelihood, by golden section on its logarithm (the loss is
    convex in 1 / temperature, so there is one minimum). Raises ValueError without answers."""
    if len(np.atleast_1d(confidence)) == 0:
        raise ValueError("a temperature needs at least one answer")

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(apply_temperature(confidence, float(np.exp(log_temperature))), correct)

    ratio = (5**0.5 - 1) / 2
    a, b = np.log(low), np.log(high)
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    fc, fd = loss(c), loss(d)
    for _ in range(60):
        if fc <= fd:
            b, d, fd = d, c, fc
            c = b - ratio * (b - a)
            fc = loss(c)
        else:
            a, c, fc = c, d, fd
            d = a + ratio * (b - a)
            fd = loss(d)
    return float(np.exp((a + b) / 2))
