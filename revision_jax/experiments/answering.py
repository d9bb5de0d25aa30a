"""How sure an answer is, by five measures of the same answers; and whether plain frame retrieval may speak in the first level."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from revision_jax.errors import UserError
from revision_jax.evaluation import exam, rejection
from revision_jax.evaluation.datasets import Item
from revision_jax.evaluation.outcome import Outcome
from revision_jax.experiments.bench import TOP_K, Bench, Exam, searched
from revision_jax.experiments.charts import Lines, Point
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.experiments.rows import Row, bars
from revision_jax.experiments.thresholds import fairly_decided
from revision_jax.files import write_text
from revision_jax.grounding import confidence as sure

# ---------------------------------------------------------------------------------------------------------------------- confidence

MEASURES = {
    "calibrated": "calibrated", "mean entropy": "entropy", "max entropy": "max_entropy", "log-probability": "log_probability", "P(present)": "presence",
}  # fmt: skip


def confidence(bench: Bench) -> list[Cell]:
    return [_measured(row, kind, bench.films) for row, kind in MEASURES.items()]


def _measured(row: str, kind: str, films: Exam) -> Cell:
    def measure(bench: Bench) -> Measured:
        said = [_said(outcome, features, kind, bench) for outcome, features in _answers(bench, films)]
        return Measured(fairly_decided(said))

    return Cell(row, {"films": films.settings(), "measure": kind}, measure)


def _said(outcome: Outcome, features: dict[str, float] | None, kind: str, bench: Bench) -> Outcome:
    """The answer's first moment alone, with another measure of its confidence."""
    if features is None:
        return outcome
    (start, end, _, _), value = outcome.moments[0], sure.confidence(kind, features, bench.grounder.calibrator)
    return dataclasses.replace(outcome, moments=((start, end, value, True),))


def _answers(bench: Bench, films: Exam) -> list[tuple[Outcome, dict[str, float] | None]]:
    """Every question's answer and the features of its first moment (None without one): asked once, kept film by film."""
    model, asked = bench.model(), []
    where = bench.workdir / "answers" / exam.identity(bench.folder, model, TOP_K, [json.dumps(films.settings(), sort_keys=True), "features"])
    items = films.items(bench)
    for done, item in enumerate(items):
        bench.progress(done, len(items), f"asking {item.name}")
        file = where / f"{item.name}.jsonl"
        if not file.is_file():
            write_text(file, "".join(json.dumps(line) + "\n" for line in _ask(bench, item)))
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        asked += [(Outcome.from_json(line["outcome"]), line["features"]) for line in lines]
    return asked


def _ask(bench: Bench, item: Item) -> list[dict]:
    video = bench.grounder.encode(item.video)
    found = bench.grounder.find(video, [question.query for question in item.questions], top_k=TOP_K)
    lines = []
    for number, one in enumerate(found):
        outcome = exam.outcome(item, number, dataclasses.replace(one, moments=one.moments[:1]), bench.model().decision, video.duration_s)
        lines.append({"outcome": outcome.to_json(), "features": one.moments[0].features if outcome.moments else None})
    return lines


def risk_coverage(found: Sequence[Row]) -> Lines:
    """Share of wrong answers among the most confident ones, over their share."""
    panel = {}
    for row in found:
        right = row.table["correct@0.5"] > 0
        risk = 100 * rejection.risk_coverage(row.table["confidence"], right)
        covered = 100 * np.arange(1, len(risk) + 1) / len(risk)
        panel[row.name] = [Point(y, y, y, x) for x, y in zip(covered.tolist(), risk.tolist(), strict=True)]
    return Lines({"wrong answers, %": panel}, "answers given, most confident first, %")


CONFIDENCE = Experiment(
    "confidence", "Which measure of the same answers tells right from wrong, and present from absent?", confidence,
    ("AUROC_right", "AUROC", "AURC", "RejF1", "ECE", "R1@0.5"), risk_coverage,
    notes=(
        "The answers are those of the calibrated search, its first moment each; only the number beside them differs, so R1 is the same in every row.",
        "AUROC of right is over present questions, AURC over all: an absent question's answer is wrong.",
        "RejF1 at thresholds fitted on the other half of the films.",
        "ECE takes the number for a probability; only the calibrated one was made to be one.",
    ),
)  # fmt: skip

# -------------------------------------------------------------------------------------------------------------------------- signal

SHARES = (0.0, 0.5, 1.0)


def signal(bench: Bench) -> list[Cell]:
    """Raises UserError for a model without a level of windows to rank."""
    if "sparse" not in bench.kinds():
        raise UserError(f"{bench.folder}: has no sparse level, whose windows this experiment ranks")
    films, without, own = bench.films, bench.all_but("sparse", "dense", "nested"), bench.config.grounding.retrieval
    names = {0.0: "decoder alone", 1.0: "similarity alone"}
    cells = [searched(f"fused, as configured ({own:g})", films, without)]
    for share in SHARES:
        if share != own:
            cells.append(searched(names.get(share, f"fused, half and half ({share:g})"), films, without, (f"grounding.retrieval={share:g}",)))
    retrieval = lambda bench: Measured(bench.ask(bench.baseline("retrieval"), films))
    return [*cells, Cell("no search: frame retrieval", {"films": films.settings(), "baseline": "retrieval"}, retrieval)]


SIGNAL = Experiment(
    "signal", "Should the first level rank its windows by what the decoder says, by their frames' similarity to the question, or by both?", signal,
    ("R1@0.5", "R5@0.5", "mIoU", "window_recall", "window_recall@1", "window_recall@5", "RejF1", "AUROC"), bars("R1@0.5", "window_recall", "window_recall@1"),
    notes=(
        "In brackets the share of the similarity in a window's rank (`grounding.retrieval`). The decoder reads the similarities in every row but the last:"
        " it was trained with them.",
        "Without the patch level, which moves boundaries alone. The last row is the baseline that uses the encoder alone.",
    ),
)  # fmt: skip
