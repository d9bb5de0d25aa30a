"""One question asked and answered: what the metrics, the raw answer files and the bootstrap all read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from revision_jax.evaluation import moments, retrieval
from revision_jax.grounding import merging

PRESENT_KINDS = ("one", "several")
ABSENT_KINDS = ("absent", "near_miss")
KINDS = PRESENT_KINDS + ABSENT_KINDS
WINDOW_RANKS = (1, 5, 10)  # of the first level's windows, best first
CORRECT_IOUS = (0.1, 0.3, 0.5)  # what "correct" means for the calibration error; the last is the figure called ECE


@dataclass(frozen=True)
class Outcome:
    """Times in seconds; `moments` are the ranked candidates before refusal, each (start, end, confidence, accepted)."""

    video: str
    query_id: str
    query: str
    kind: str
    duration_s: float
    truth: tuple[tuple[float, float], ...]
    moments: tuple[tuple[float, float, float, bool], ...]
    parse_failures: int = 0
    survivors: tuple[tuple[float, float], ...] | None = None  # spans that left the first level; None: there was no first level
    survivors_share: float | None = None  # windows that survived / windows the first level had
    windows: tuple[tuple[float, float], ...] | None = None  # the first level's, best first, as many as are looked at here
    oracle_iou: float | None = None  # mean over true moments of the top span's IoU when the right window is given; None: not asked
    seconds: float = 0.0
    prompts: float | None = None  # sequences that the decoder read for this question; None: not counted
    tokens: float | None = None  # visual tokens in them
    tags: tuple[str, ...] = ()  # of the annotations; figures are told for each as well
    probabilities: bool = True  # whether confidences are meant as such; else they rank alone (other people's scores may be anything)

    @property
    def present(self) -> bool:
        """Whether the question has an answer in truth."""
        return len(self.truth) > 0

    @property
    def confidence(self) -> float:
        """Of the best candidate; 0 without one."""
        return max((moment[2] for moment in self.moments), default=0.0)

    @property
    def key(self) -> tuple[str, str]:
        return self.video, self.query_id

    def to_json(self) -> dict:
        values = dataclasses.asdict(self)
        values["moments"] = [{"start_s": s, "end_s": e, "confidence": c, "accepted": a} for s, e, c, a in self.moments]
        return values

    @staticmethod
    def from_json(values: dict) -> Outcome:
        """Raises KeyError or TypeError for a record this version did not write."""
        values = dict(values)
        values["truth"] = tuple((float(s), float(e)) for s, e in values["truth"])
        values["moments"] = tuple((float(m["start_s"]), float(m["end_s"]), float(m["confidence"]), bool(m["accepted"])) for m in values["moments"])
        for name in ("survivors", "windows"):
            if values.get(name) is not None:
                values[name] = tuple((float(s), float(e)) for s, e in values[name])
        return Outcome(**{**values, "tags": tuple(values.get("tags", ()))})


def with_threshold(outcome: Outcome, threshold: float, further: float | None = None) -> Outcome:
    """The same answer decided at another threshold, and at another for moments beside the first (`merging.accepted`)."""
    spans, confidence = moments.as_spans(m[:2] for m in outcome.moments), np.asarray([m[2] for m in outcome.moments], np.float64)
    decided = merging.accepted(spans, confidence, threshold, further).tolist()
    return dataclasses.replace(outcome, moments=tuple((s, e, c, a) for (s, e, c, _), a in zip(outcome.moments, decided, strict=True)))


def columns(outcomes: list[Outcome]) -> dict[str, Float[np.ndarray, "n"]]:
    """One number a question for every figure, NaN where a figure does not apply to a question (R1 of an absent one).

    Fractions in [0, 1]. `refused` is for absent questions, `answered` for present ones; `correct@t` for all, an absent question's
    answer being wrong whatever it is.
    """
    table: dict[str, list[float]] = {}

    def put(name: str, value: float | None, applies: bool = True) -> None:
        table.setdefault(name, []).append(float(value) if applies and value is not None else float("nan"))

    for outcome in outcomes:
        ranked = sorted(outcome.moments, key=lambda moment: -moment[2])
        spans = moments.as_spans((s, e) for s, e, _, _ in ranked)
        accepted = moments.as_spans((s, e) for s, e, _, a in ranked if a)
        truth, yes = moments.as_spans(outcome.truth), outcome.present
        matches = moments.best_iou(spans, truth)
        for rank in moments.RECALL_RANKS:
            for iou in moments.RECALL_IOUS:
                put(f"R{rank}@{iou}", moments.reached(matches, rank, iou), yes)
        top = moments.top_iou(spans, truth)
        put("mIoU", top, yes)
        put("mAP", moments.mean_average_precision(spans, truth), yes)
        for iou in (0.5, 0.75):
            put(f"mAP@{iou}", moments.average_precision(spans[: moments.PRECISION_SPANS], truth, iou), yes)
        for name, (low, high) in moments.LENGTHS.items():
            part = moments.of_length(truth, low, high)
            put(f"mAP_{name}", moments.mean_average_precision(spans, part) if len(part) else None)
        put("F1@0.5", moments.f1(accepted, truth, 0.5), yes)
        put("tF1", moments.temporal_f1(accepted, truth), yes)
        put("count_accuracy", float(len(accepted) == len(truth)), yes)
        put("answered", float(len(accepted) > 0), yes)
        put("refused", float(len(accepted) == 0), not yes)
        put("false_alarms", float(len(accepted)), not yes)
        put("absent_hours", outcome.duration_s / 3600.0, not yes)
        put("present", float(yes))
        put("confidence", outcome.confidence)
        put("probability", outcome.confidence, outcome.probabilities)
        for iou in CORRECT_IOUS:
            put(f"correct@{iou}", float(top > iou))
        found = (None, None) if outcome.survivors is None or not yes else retrieval.window_recall(moments.as_spans(outcome.survivors), truth)
        put("window_recall", found[0])
        put("window_recall_all", found[1])
        for rank in WINDOW_RANKS:
            ranked_windows = None if outcome.windows is None or not yes else outcome.windows[:rank]
            put(f"window_recall@{rank}", None if ranked_windows is None else retrieval.window_recall(ranked_windows, truth)[0])
        put("survivors_share", outcome.survivors_share)
        put("oracle_window_mIoU", outcome.oracle_iou, yes)
        put("seconds", outcome.seconds)
        put("prompts", outcome.prompts)
        put("tokens", outcome.tokens)
    return {name: np.asarray(values) for name, values in table.items()}
