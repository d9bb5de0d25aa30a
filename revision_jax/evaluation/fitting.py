"""What is fitted on validation and stored with the checkpoint: calibrator, temperature and threshold; and the same for the baselines, plus
retrieval's span rule, so that none of them is beaten for want of tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from revision_jax.checkpoint import CALIBRATION
from revision_jax.errors import UserError
from revision_jax.evaluation import baselines, calibration, exam, moments, rejection
from revision_jax.evaluation.baselines import Decision, Flat, Random, Retrieval, SpanRule
from revision_jax.evaluation.datasets import Item
from revision_jax.evaluation.outcome import CORRECT_IOUS, Outcome, columns, with_threshold
from revision_jax.grounding import confidence as sure
from revision_jax.grounding.confidence import Calibrator
from revision_jax.grounding.grounder import Grounder
from revision_jax.grounding.levels import hierarchy
from revision_jax.grounding.similarity import frame_similarity

Progress = Callable[[int, int, str], None]
CORRECT = CORRECT_IOUS[-1]  # a confidence is the probability that the moment has more than this IoU with a true one


def decide(outcomes: Sequence[Outcome]) -> Decision:
    """Temperature and thresholds of these answers: the temperature makes the first candidate's confidence honest (it keeps the order), the
    threshold, in the new confidence, has the highest RejF1, that for further moments the highest EtF1. Raises UserError unless there are present and absent
    questions."""
    table = columns(list(outcomes))
    if not 0 < table["present"].sum() < len(outcomes):
        raise UserError("fitting needs present and absent questions in the validation split")
    correct = table[f"correct@{CORRECT}"] > 0
    # With every answer right, or every one wrong, the best temperature is no finite one.
    temperature = calibration.fit_temperature(table["confidence"], correct) if 0 < correct.sum() < len(correct) else 1.0
    threshold, _ = rejection.fit_threshold(calibration.apply_temperature(table["confidence"], temperature), table["present"] > 0)
    return Decision(temperature, threshold, further(_tempered(outcomes, temperature), threshold))


def further(outcomes: Sequence[Outcome], threshold: float) -> float:
    """The threshold in [0, 1] for moments beside the first with the highest EtF1 over the present questions."""
    present = [outcome for outcome in outcomes if outcome.present]
    others = [moment[2] for outcome in present for moment in outcome.moments if moment[2] < outcome.confidence]

    def etf1(least: float) -> float:
        accepted = [[m[:2] for m in with_threshold(outcome, threshold, least).moments if m[3]] for outcome in present]
        pairs = [(moments.as_spans(spans), moments.as_spans(outcome.truth)) for spans, outcome in zip(accepted, present, strict=True)]
        return float(np.mean([len(spans) == len(truth) for spans, truth in pairs]) * np.mean([moments.temporal_f1(*pair) for pair in pairs]))

    return rejection.best_threshold(np.asarray(others, np.float64), etf1)[0]


def false_alarms(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `threshold_for` chooses by: the confidences of all candidates of absent questions, highest first, and the hours that were searched for them."""
    absent = [outcome for outcome in outcomes if not outcome.present]
    found = sorted((moment[2] for outcome in absent for moment in outcome.moments), reverse=True)
    return {"hours": sum(outcome.duration_s for outcome in absent) / 3600, "questions": len(absent), "confidences": found}


def threshold_for(checkpoint: str | Path, limit: float) -> float:
    """The least threshold that gave at most `limit` false alarms an hour of video on what the checkpoint was fitted on. Raises UserError where it keeps no
    such record, and where no threshold does."""
    kept, path = stored(checkpoint).get("false_alarms"), Path(checkpoint) / CALIBRATION
    if kept is None:
        raise UserError(f"{path}: keeps no false alarms to choose by; fit the checkpoint again (launch.evaluate --fit), or give a --threshold")
    try:
        return rejection.false_alarm_threshold(np.asarray(kept["confidences"], np.float64), float(kept["hours"]), limit)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: false_alarms: no threshold can be chosen ({error})") from None


def calibrator(grounder: Grounder, items: Sequence[Item], progress: Progress | None = None) -> tuple[Calibrator, dict[str, Any]]:
    """Logistic regression over the features of every candidate before merging, then temperature and threshold of the final answers; and their `false_alarms`.

    The candidates of the frame level are taken before their boundaries are refined: which of them are refined depends on what is fitted.
    The grounder is left with the new calibrator. Raises UserError where the questions do not suffice.
    """
    rows, right = [], []
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items), f"candidates of {item.name}")
        video = exam.video_of(grounder, item)
        found = grounder.searcher.search(video.source, [q.query for q in item.questions])
        for question, one in zip(item.questions, found, strict=True):
            spans = moments.as_spans((c.start_s, c.end_s) for c in one.candidates)
            rows += [candidate.features for candidate in one.candidates]
            right += (moments.best_iou(spans, question.truth) > CORRECT).tolist()
    fitted = sure.fit(rows, np.asarray(right, dtype=bool))
    use(grounder, fitted)
    outcomes = _asked(grounder, baselines.Model(), items, progress, "answers of")
    decision = decide(outcomes)
    fitted = fitted.with_threshold(decision.threshold, decision.further, decision.temperature)
    use(grounder, fitted)
    return fitted, false_alarms(_tempered(outcomes, decision.temperature))


def mapped(outcomes: Sequence[Outcome], rule: Callable[[np.ndarray], np.ndarray]) -> list[Outcome]:
    """The same answers with every confidence behind a map of confidences."""
    found = []
    for outcome in outcomes:
        confidences = rule(np.asarray([moment[2] for moment in outcome.moments], np.float64)).tolist()
        found.append(replace(outcome, moments=tuple((s, e, c, a) for (s, e, _, a), c in zip(outcome.moments, confidences, strict=True))))
    return found


def _tempered(outcomes: Sequence[Outcome], temperature: float) -> list[Outcome]:
    return mapped(outcomes, lambda confidences: calibration.apply_temperature(confidences, temperature))


def hierarchy_of(grounder: Grounder, items: Sequence[Item]) -> str:
    """The levels that these films are searched by (`levels.hierarchy`). Raises UserError where they differ: a calibrator is of one hierarchy."""
    found = {}
    for item in items:
        found.setdefault(hierarchy(grounder.config.grounding.levels, exam.video_of(grounder, item).duration_s), item.name)
    if len(found) != 1:
        told = ", ".join(f"{name} by {levels}" for levels, name in found.items())
        raise UserError(f"films of one hierarchy can be fitted on at a time: {told}")
    return next(iter(found))


def merged(stored: dict[str, Any], fitted: dict[str, Any]) -> dict[str, Any]:
    """`calibration.json` after a fit: `fitted` in place of what was there, or, where that was fitted on films of another hierarchy, beside it; the threshold
    and all else then stay. Both name theirs in "fitted_on"."""
    first, this = stored.get("fitted_on", {}).get("hierarchy"), fitted["fitted_on"]["hierarchy"]
    if "bias" not in stored or first is None or first == this:
        return fitted
    kept = {name: fitted[name] for name in (*(f.name for f in fields(Calibrator) if f.name not in ("threshold", "further", "hierarchies")), "fitted_on")}
    return {**stored, "hierarchies": {**stored.get("hierarchies", {}), this: kept}}


def use(grounder: Grounder, fitted: Calibrator) -> None:
    """Makes a grounder answer with this calibrator from now on."""
    grounder.calibrator = grounder.searcher.calibrator = fitted


def span_rule(grounder: Grounder, items: Sequence[Item], progress: Progress | None = None) -> SpanRule:
    """The rule with the highest mean of R1@0.3, R1@0.5 and R1@0.7 on these videos; the similarity is computed once for all rules."""
    rules = [SpanRule(smooth_s, relative) for smooth_s in baselines.SMOOTHING_S for relative in baselines.RELATIVE]
    scores = np.zeros(len(rules))
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items), f"span rule, {item.name}")
        video = exam.video_of(grounder, item)
        asked = [q for q in item.questions if q.truth]
        levels = frame_similarity(grounder.programs, video.source, [grounder.programs.question(q.query) for q in asked])
        for question, level in zip(asked, levels, strict=True):
            for number, rule in enumerate(rules):
                top = [(s, e) for s, e, _ in baselines.spans(level, video.source.rate, rule, 1)]
                scores[number] += sum(moments.recall(top, question.truth, 1, iou) for iou in (0.3, 0.5, 0.7))
    return rules[int(scores.argmax())]


def fit_baselines(grounder: Grounder, items: Sequence[Item], progress: Progress | None = None) -> dict[str, dict[str, Any]]:
    """Settings of every baseline, as `baselines.make` reads them from calibration.json."""
    methods = [Random(), Flat()]
    if grounder.programs.has_similarity:
        methods.append(Retrieval(span_rule(grounder, items, progress)))
    fitted = {}
    for method in methods:
        decision = decide(_asked(grounder, method, items, progress, f"{method.name},"))
        fitted[method.name] = replace(method, decision=decision).settings()
    return fitted


def _asked(grounder: Grounder, method: baselines.Method, items: Sequence[Item], progress: Progress | None, what: str) -> list[Outcome]:
    outcomes = []
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items), f"{what} {item.name}")
        outcomes += exam.ask(grounder, method, item, exam.video_of(grounder, item), top_k=5, oracle=False)
    return outcomes


def stored(checkpoint: str | Path) -> dict[str, Any]:
    """What `calibration.json` of a checkpoint holds; empty where there is none. Raises UserError where it cannot be read."""
    path = Path(checkpoint) / CALIBRATION
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold an object, holds {type(values).__name__}")
    return values
