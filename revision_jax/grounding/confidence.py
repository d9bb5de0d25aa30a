"""How sure an answer is: entropies of the answer's tokens, and a calibrator that turns all there is to know into a probability.

The paper's R = 1 / mean entropy over the answer's tokens, natural logarithm, raw logits (ReVisionLLM, arXiv 2411.14901); there the end token's step is
included, here the mean ends with the last token that is chosen, because what the grammar forces behind it is never read (`generate.Decoded.known`; free
decoding reads all). R is unbounded, so it is squashed to R / (1 + R) = 1 / (1 + mean entropy), which keeps its order. The calibrator is logistic
regression on the candidate's features, fitted on held-out data and stored with the model as plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from revision_jax.errors import UserError

FEATURES = (
    "present",  # log-odds of "from" against "not" at the answer's first token, of the window the span was found in
    "score",  # log-probability of the span among all spans
    "behind",  # score less that of the window's best span, 0 for the best
    "entropy",  # mean, in nats
    "max_entropy",
    "coarse_present",  # the same log-odds at the window level above, 0 without one
    "coarse_score",  # log of the share of answers that named this window there, 0 without
    "inside_mean",  # similarity of the frames inside the span to the query, 0 to 1
    "inside_max",
    "phrase_mean",  # the same mean of the query's phrase that matches least, of a tower without phrases the query's own
    "phrase_max",  # the same phrase-wise of the best frame: is each thing that the query speaks of seen at all?
    "margin",  # inside_mean less the mean just outside
    "log_duration",
    "astray",  # 1 where the subject does not go the way that the question says, 0 where it goes a fifth of the frame or more, or no way is said
    "edge",  # 1 where the span touches an end of its window that is not an end of the film
)
CLIP = 15.0  # log-odds and log-probabilities are kept within +-CLIP


def token_entropy(logits: Float[np.ndarray, "*b V"]) -> Float[np.ndarray, "*b"]:
    """-sum p log p in nats of the distribution over the whole vocabulary; computed in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(-1, keepdims=True))
    p = np.exp(shifted - log_sum)
    return np.asarray(np.maximum(-(p * (shifted - log_sum)).sum(-1), 0.0))


def mean_entropy(entropy: Float[np.ndarray, "*b L"], length: Int[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Mean over an answer's first `length` steps."""
    used = np.arange(entropy.shape[-1]) < np.asarray(length)[..., None]
    return np.asarray(np.where(used, entropy, 0.0).sum(-1) / np.maximum(length, 1))


def max_entropy(entropy: Float[np.ndarray, "*b L"], length: Int[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Largest entropy of an answer's steps: one unsure number makes the answer unsure."""
    used = np.arange(entropy.shape[-1]) < np.asarray(length)[..., None]
    return np.asarray(np.where(used, entropy, 0.0).max(-1))


def reliability(mean: float) -> float:
    """The paper's R = 1 / mean entropy."""
    return 1.0 / max(mean, 1e-9)


def squash(r: float) -> float:
    """R in [0, inf) to [0, 1), order kept: R / (1 + R)."""
    return r / (1.0 + r)


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, np.float64)))


def confidence(kind: str, features: Mapping[str, float], calibrator: Calibrator | None = None) -> float:
    """A candidate's confidence in [0, 1] by `GroundingConfig.confidence`.

    entropy: R / (1 + R); max_entropy: the same with the largest entropy; log_probability: the span's probability; presence: P(present);
    calibrated: the calibrator's, and where a checkpoint has none, P(present) * R / (1 + R). Hypotheses of one window share their presence and much of
    their entropy, so all kinds but log_probability and a fitted calibrator weigh a lesser hypothesis by its probability relative to the window's best.
    """
    if kind == "calibrated" and calibrator is not None:
        return calibrator.apply(features)
    if kind == "log_probability":
        return math.exp(min(features["score"], 0.0))
    relative = math.exp(min(features["behind"], 0.0))
    present = float(sigmoid(features["present"]))
    if kind == "presence":
        return relative * present
    certainty = squash(reliability(features["max_entropy" if kind == "max_entropy" else "entropy"]))
    return relative * certainty * (present if kind == "calibrated" else 1.0)


@dataclass(frozen=True)
class Calibrator:
    """sigmoid((weights . (x - mean) / std + bias) / temperature), then through `curve`. `threshold`: confidence at which a candidate is accepted; `further`: at
    which others are, once one is (None: the same).

    curve: (from, to) knots of a rising map of [0, 1] onto itself, straight between them; none: as it is. hierarchies: calibrators of their own for films that
    are searched by other levels than the one this was fitted on, by `levels.hierarchy`; all confidences are probabilities, so the threshold is one.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    temperature: float = 1.0
    threshold: float = 0.5
    further: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    hierarchies: Mapping[str, Calibrator] = field(default_factory=dict, hash=False)

    def of(self, hierarchy: str) -> Calibrator:
        """The calibrator of films that are searched by these levels."""
        return self.hierarchies.get(hierarchy, self)

    def logit(self, features: Mapping[str, float]) -> float:
        """Log-odds before the temperature. Raises KeyError if a feature is missing."""
        x = np.asarray([features[name] for name in self.features], np.float64)
        return float(np.dot(self.weights, (x - self.mean) / self.std) + self.bias)

    def apply(self, features: Mapping[str, float]) -> float:
        """The probability that the candidate is right."""
        plain = float(sigmoid(self.logit(features) / self.temperature))
        return float(np.interp(plain, *zip(*self.curve, strict=True))) if self.curve else plain

    def with_threshold(self, threshold: float, further: float | None = None, temperature: float | None = None) -> Calibrator:
        temperature = self.temperature if temperature is None else temperature
        return replace(self, threshold=float(threshold), further=further, temperature=float(temperature))

    def to_dict(self) -> dict:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping, where: str = "calibration.json") -> Calibrator:
        """Raises UserError naming what is wrong."""
        lists = ("features", "mean", "std", "weights")
        missing = sorted({*lists, "bias"} - set(values))
        if missing:
            raise UserError(f"{where}: lacks {', '.join(missing)}")
        try:
            made = Calibrator(
                tuple(map(str, values["features"])), *(tuple(float(x) for x in values[name]) for name in lists[1:]),
                float(values["bias"]), float(values.get("temperature", 1.0)), float(values.get("threshold", 0.5)),
                None if values.get("further") is None else float(values["further"]),
                tuple((float(x), float(y)) for x, y in values.get("curve", ())),
                {name: Calibrator.from_dict(inner, f"{where}: hierarchies.{name}") for name, inner in dict(values.get("hierarchies", {})).items()},
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not numbers ({error})") from None
        unknown = sorted(set(made.features) - set(FEATURES))
        if unknown:
            raise UserError(f"{where}: unknown feature {', '.join(unknown)}; known are {', '.join(FEATURES)}")
        if len({len(getattr(made, name)) for name in lists}) != 1 or min(made.std, default=1.0) <= 0 or made.temperature <= 0:
            raise UserError(f"{where}: features, mean, std and weights must be equally long, std and temperature above 0")
        if not all(0 <= value <= 1 for value in (made.threshold, made.further) if value is not None):
            raise UserError(f"{where}: threshold and further must lie in [0, 1], are {made.threshold} and {made.further}")
        if made.curve and not (made.curve[0] == (0, 0) and made.curve[-1] == (1, 1) and (np.diff(made.curve, axis=0) >= 0).all()):
            raise UserError(f"{where}: curve must rise from [0, 0] to [1, 1]")
        return made


def fit(
    rows: Sequence[Mapping[str, float]], correct: Bool[np.ndarray, "n"], *, features: Sequence[str] = FEATURES, l2: float = 1.0, threshold: float = 0.5,
    steps: int = 50,
) -> Calibrator:
    """Logistic regression by Newton's method on standardised features, ridge `l2` on the weights (not on the bias); deterministic.

    rows: one feature dict a candidate; correct: whether it was right. Raises UserError without at least one right and one wrong.
    """
    y = np.asarray(correct, np.float64)
    if len(rows) != len(y) or not 0 < y.sum() < len(y):
        raise UserError(f"calibration: needs right and wrong candidates, has {int(y.sum())} right of {len(y)}")
    x = np.asarray([[row[name] for name in features] for row in rows], np.float64)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-9, std, 1.0)
    design = np.concatenate([(x - mean) / std, np.ones((len(x), 1))], 1)
    penalty = np.diag([*([float(l2)] * len(features)), 1e-9])
    theta = np.zeros(design.shape[1])

    def loss(theta: np.ndarray) -> float:
        z = design @ theta
        return float(np.logaddexp(0, z).sum() - y @ z + 0.5 * theta @ penalty @ theta)

    current = loss(theta)
    for _ in range(steps):
        p = sigmoid(design @ theta)
        gradient = design.T @ (p - y) + penalty @ theta
        hessian = (design * (p * (1 - p))[:, None]).T @ design + penalty
        step = np.linalg.solve(hessian + 1e-9 * np.eye(len(theta)), gradient)
        size = 1.0
        while size > 1e-6 and loss(theta - size * step) > current:
            size /= 2
        theta = theta - size * step
        before, current = current, loss(theta)
        if before - current < 1e-10 * max(1.0, abs(current)):
            break
    return Calibrator(tuple(features), tuple(mean.tolist()), tuple(std.tolist()), tuple(theta[:-1].tolist()), float(theta[-1]), 1.0, threshold)
