"""A fitted checkpoint's confidences made honest again on saved answers, without asking a question anew.

The checkpoint's calibrator stays; what comes out of it goes through one more map, fitted on the first candidates of a validation run (right: IoU above 0.5):

    temperature   log-odds times one number: as sharp as they should be
    platt         and plus another
    isotonic      any rising curve

The first two are folded into the calibrator's temperature and bias; the third is its curve. The threshold is fitted again, and the record of false alarms goes
through the same map. Maps are chosen by answers that they were not fitted on: folds of whole videos.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from revision_jax.errors import UserError
from revision_jax.evaluation import calibration, fitting, moments, rejection
from revision_jax.evaluation.outcome import Outcome
from revision_jax.grounding.confidence import Calibrator

KINDS = ("temperature", "platt", "isotonic")
FOLDS = 5
Confidence = Float[np.ndarray, "n"]


def fit_map(kind: str, confidence: Confidence, correct: Bool[np.ndarray, "n"]) -> tuple[dict[str, Any], Callable[[Confidence], Confidence]]:
    """(its numbers, the map). Raises ValueError without answers."""
    if kind == "isotonic":
        curve = calibration.fit_isotonic(confidence, correct)
        return {"curve": curve}, lambda values: calibration.apply_curve(values, curve)
    slope, shift = (1 / calibration.fit_temperature(confidence, correct), 0.0) if kind == "temperature" else calibration.fit_platt(confidence, correct)
    return {"slope": slope, "shift": shift}, lambda values: calibration.apply_platt(values, slope, shift)


def compare(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """ECE, Brier score and negative log likelihood of each kind, and of "none", on answers about videos that the map was not fitted on."""
    confidence, correct, folds = *_answers(outcomes), _folds(outcomes)
    found = {}
    for kind in ("none", *KINDS):
        made = confidence.copy()
        for fold in np.unique(folds) if kind != "none" else ():
            inside = folds != fold
            if inside.any():
                made[~inside] = fit_map(kind, confidence[inside], correct[inside])[1](confidence[~inside])
        found[kind] = {
            "ECE": calibration.expected_calibration_error(made, correct), "Brier": calibration.brier(made, correct),
            "log loss": calibration.negative_log_likelihood(made, correct),
        }  # fmt: skip
    return found


def recalibrated(stored: dict[str, Any], outcomes: Sequence[Outcome], kind: str, about: dict[str, Any]) -> dict[str, Any]:
    """`calibration.json` with one more map, fitted on these answers. about: what they are answers to, kept as "recalibrated_on".

    Raises UserError where there is no calibrator, where it has a curve already, and unless there are present and absent questions, right and wrong answers.
    """
    calibrator = Calibrator.from_dict(stored)
    if calibrator.curve:
        raise UserError("calibration.json: went through an isotonic curve already; fit the checkpoint again first (launch.evaluate --fit)")
    confidence, correct = _answers(outcomes)
    present = np.asarray([one.present for one in outcomes])
    if present.all() or not present.any() or correct.all() or not correct.any():
        raise UserError("calibration needs present and absent questions, and right and wrong answers")
    numbers, apply = fit_map(kind, confidence, correct)
    if "curve" in numbers:
        calibrator = dataclasses.replace(calibrator, curve=numbers["curve"])
    else:  # slope * z / temperature + shift, z being the calibrator's log-odds
        temperature = calibrator.temperature / numbers["slope"]
        calibrator = dataclasses.replace(calibrator, temperature=temperature, bias=calibrator.bias + numbers["shift"] * temperature)
    threshold, _ = rejection.fit_threshold(apply(confidence), present)
    honest = fitting.mapped(outcomes, apply)
    decided = calibrator.with_threshold(threshold, fitting.further(honest, threshold))
    plain = {name: value for name, value in decided.to_dict().items() if name != "hierarchies"}  # these stay as they are stored
    result = {**stored, **plain, "recalibrated_on": {**about, "kind": kind, "questions": len(outcomes)}}
    return {**result, "false_alarms": fitting.false_alarms(honest)}


def _answers(outcomes: Sequence[Outcome]) -> tuple[Confidence, Bool[np.ndarray, "n"]]:
    first = [max(one.moments, key=lambda moment: moment[2], default=(0.0, 0.0, 0.0, False)) for one in outcomes]
    right = [moments.top_iou([span[:2]], one.truth) > fitting.CORRECT for span, one in zip(first, outcomes, strict=True)]
    return np.asarray([one.confidence for one in outcomes], np.float64), np.asarray(right, bool)


def _folds(outcomes: Sequence[Outcome]) -> np.ndarray:
    """The fold of each question: that of its video, by the order of a hash."""
    videos = sorted({one.video for one in outcomes}, key=lambda name: hashlib.blake2b(name.encode()).digest())
    place = {name: number % FOLDS for number, name in enumerate(videos)}
    return np.asarray([place[one.video] for one in outcomes])
