"""A run told as JSON and as tables, and two runs set against each other."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from revision_jax.errors import UserError
from revision_jax.evaluation import calibration, figures, moments
from revision_jax.evaluation.outcome import CORRECT_IOUS, KINDS, Outcome, columns
from revision_jax.files import write_text

FORMAT = 1
HEADLINE = (
    *figures.RECALLS, "mIoU", *figures.PRECISIONS, "F1@0.5", "EtF1", "RejF1", "FPR", "false_alarms_per_hour", "AUROC", "AURC", "ECE", "Brier", "window_recall",
    *figures.WINDOW_RECALLS, "survivors_share", "oracle_window_mIoU",
)  # fmt: skip
MAIN = ("R1@0.5", "mIoU", "RejF1", "AUROC", "ECE", "window_recall", "seconds")  # shown also where the questions do not have what they need
FRACTIONS = ("AUROC", "AUROC_right", "AURC", "ECE", "Brier", "false_alarms_per_hour")  # told as they are, not in percent
UNITS = "percent; AUROC, AUROC_right, AURC, ECE and Brier in [0, 1]; seconds a question, encoding not counted"
MEANING = {
    "R1@0.1": "share of present questions whose first candidate has IoU 0.1 with any true moment",
    "R5@0.1": "the same for any of the first five candidates",
    "mIoU": "mean IoU of the first candidate with the true moment it matches best",
    "mAP": "average precision of the first ten candidates over IoU 0.5, 0.55 .. 0.95",
    "mAP_short": "the same of moments of at most 10 s; middle: 30 s; long: above",
    "F1@0.5": "accepted moments matched one to one with true ones at IoU 0.5",
    "EtF1": "count accuracy x mean tF1 at IoU 0.3, 0.5, 0.7, accepted moments",
    "RejF1": "harmonic mean of absent questions refused and present ones answered",
    "FPR": "absent questions that get an answer",
    "false_alarms_per_hour": "accepted moments an hour of video, over absent questions",
    "AURC": "mean risk (share of first candidates with IoU of at most 0.5) over all coverages, the most confident first",
    "Brier": "mean squared difference of the first candidate's confidence and whether its IoU is above 0.5",
    "AUROC_right": "chance that of two present questions' first candidates the one with IoU above 0.5 is more confident than one without",
    "prompts": "sequences that the decoder read for a question; tokens: visual tokens in them",
    "AUROC": "chance that a present question's confidence exceeds an absent one's",
    "ECE": "calibration error of the first candidate, correct = IoU above 0.5",
    "window_recall": "share of present questions with half of a true moment inside the first level's survivors",
    "window_recall@1": "the same of the first level's best window, best five, best ten",
    "survivors_share": "windows that survive the first level",
    "oracle_window_mIoU": "mIoU when the finer levels are given the right window",
    "window_recall_all": "share of true moments found by the first level",
}


def _counts(outcomes: list[Outcome]) -> dict[str, int]:
    counts = {"questions": len(outcomes), "present": sum(o.present for o in outcomes), "videos": len({o.video for o in outcomes})}
    counts |= {kind: sum(o.kind == kind for o in outcomes) for kind in KINDS}
    counts["no_candidate"] = sum(not o.moments for o in outcomes)
    return counts


def _finite(value: Any) -> Any:
    """NaN is not JSON: an empty bin's mean becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def build(outcomes: list[Outcome], run: dict[str, Any], *, resamples: int = figures.RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The result of a run as one JSON object.

    All figures at the top level (units in figures.py; null where no question has what a figure needs), then `counts`, `parse_failures`,
    `kinds` (figures of each kind of question), `tags` (of the questions with each tag), `intervals` (95 % bootstrap), `kind_intervals` (those
    of each kind), `reliability` (first candidates, correct = IoU > 0.5), `units`, `meaning`, `run` (what was run, as given) and `questions`
    (every answer, from which all of it can be computed again).
    """
    if not outcomes:
        raise UserError("no question was asked: the split is empty, or --limit is 0")
    table = columns(outcomes)
    known = ~np.isnan(table["probability"])
    diagram = calibration.reliability(table["probability"][known], table[f"correct@{CORRECT_IOUS[-1]}"][known] > 0)
    report: dict[str, Any] = {"format": FORMAT}
    report |= figures.figures(outcomes)
    report["parse_failures"] = sum(o.parse_failures for o in outcomes)
    report["counts"] = _counts(outcomes)
    kinds = {kind: those for kind in KINDS if (those := [o for o in outcomes if o.kind == kind])}
    report["kinds"] = {kind: figures.figures(those) for kind, those in kinds.items()}
    report["tags"] = _tags(outcomes)
    intervals = lambda those: {name: value and list(value) for name, value in figures.intervals(those, resamples=resamples, seed=seed).items()}
    report["intervals"] = intervals(outcomes)
    report["kind_intervals"] = {kind: intervals(those) for kind, those in kinds.items()}
    report["reliability"] = dataclasses.asdict(diagram)
    report["units"], report["meaning"] = UNITS, MEANING
    report["run"] = run
    report["questions"] = [o.to_json() for o in outcomes]
    return _finite(report)


def _tags(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """For each tag the figures of the questions that have it, how many they are, and of the absent ones the near-misses apart."""
    tags: dict[str, dict[str, Any]] = {}
    for tag in sorted({tag for outcome in outcomes for tag in outcome.tags}):
        those = [outcome for outcome in outcomes if tag in outcome.tags]
        near = figures.figures([outcome for outcome in those if outcome.kind == "near_miss"])
        tags[tag] = {**_counts(those), **figures.figures(those), "refused_near_miss": near.get("refused")}
    return tags


def save(path: str | Path, report: dict[str, Any]) -> None:
    """Writes the JSON whole or not at all."""
    write_text(path, json.dumps(report, indent=1) + "\n")


def load(path: str | Path) -> dict[str, Any]:
    """Reads what `save` wrote; raises UserError for anything else."""
    return read(path, outcomes_of, "an evaluation")


def read(path: str | Path, check: Callable[[dict[str, Any]], object], kind: str) -> dict[str, Any]:
    """Reads a report that `save` wrote. `check` raises ValueError, KeyError, TypeError or AttributeError for one that is not of this kind: UserError here."""
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        check(report)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the --json file of another evaluation") from None
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not the --json file of {kind} ({type(error).__name__}: {error})") from None
    return report


def outcomes_of(report: dict[str, Any]) -> list[Outcome]:
    return [Outcome.from_json(values) for values in report["questions"]]


def compare(first: dict[str, Any], second: dict[str, Any], *, resamples: int = figures.RESAMPLES, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of every figure of two reports, question by question (see `figures.paired_bootstrap`).

    Raises UserError unless both runs asked the same questions about the same videos with the same truth.
    """
    a, b = ({o.key: o for o in outcomes_of(report)} for report in (first, second))
    if a.keys() != b.keys():
        only = f"{len(a.keys() - b.keys())} only in the first, {len(b.keys() - a.keys())} only in the second"
        raise UserError(f"the two runs asked different questions ({only}): evaluate both on the same split with the same --limit")
    differing = [key for key in a if a[key].truth != b[key].truth]
    if differing:
        one = f"question {differing[0][1]} of {differing[0][0]}"
        raise UserError(f"the two runs were judged by different annotations ({one}, for one): evaluate both on the same data")
    keys = sorted(a)
    return figures.paired_bootstrap([a[key] for key in keys], [b[key] for key in keys], resamples=resamples, seed=seed)


# ------------------------------------------------------------------------------------------------------------------------------- tables


def _show(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in FRACTIONS or name.startswith("ECE"):
        return f"{value:.3f}"
    return f"{value:.3f} s" if name == "seconds" else f"{value:.1f}"


def table(report: dict[str, Any]) -> Table:
    """All figures with their intervals, and beside them the figures of each kind of question."""
    counts, kinds = report["counts"], report["kinds"]
    run = report["run"]
    title = " · ".join(str(part) for part in (run.get("method"), run.get("dataset"), run.get("split")) if part)
    caption = f"{counts['questions']} questions ({counts['present']} present) about {counts['videos']} videos; {report['parse_failures']} unreadable answers"
    result = Table(title=title or None, caption=caption, title_justify="left", caption_justify="left")
    result.add_column("figure")
    result.add_column("all", justify="right", style="bold")
    result.add_column("95 %", justify="right", style="dim")
    for kind in kinds:
        result.add_column(f"{kind.replace('_', ' ')} ({counts[kind]})", justify="right")
    deepest = max((len(question["moments"]) for question in report["questions"]), default=0)
    beyond = {f"R{rank}@{iou}" for rank in moments.RECALL_RANKS for iou in moments.RECALL_IOUS if rank > max(deepest, 5)}  # no candidate has such a rank
    for name in (*HEADLINE, "window_recall_all", "count_accuracy", "tF1", "answered", "refused", "seconds"):
        if name in beyond or (report.get(name) is None and name not in MAIN):
            continue
        interval = report["intervals"].get(name)
        shown = f"{_show(name, interval[0])} – {_show(name, interval[1])}" if interval else ""
        result.add_row(name, _show(name, report[name]), shown, *(_show(name, kinds[kind][name]) for kind in kinds))
    return result


def tag_table(report: dict[str, Any]) -> Table | None:
    """Some figures of the questions that have a tag, a row for each, with how many a figure is of; None where no question has one."""
    if not report.get("tags"):
        return None
    result = Table(title="by tag", title_justify="left", caption="in brackets how many questions", caption_justify="left")
    result.add_column("tag")
    present, absent = ("R1@0.5", "R1@0.7", "mIoU", "answered"), {"refused": "absent refused", "refused_near_miss": "of them near misses"}
    for heading in (*present, *absent.values()):
        result.add_column(heading, justify="right")
    for tag, row in report["tags"].items():
        counts = {**dict.fromkeys(present, row["present"]), "refused": row["absent"] + row["near_miss"], "refused_near_miss": row["near_miss"]}
        result.add_row(escape(tag), *(f"{_show(name, row[name])} ({count})" if count else "-" for name, count in counts.items()))
    return result


def comparison_table(
    comparison: dict[str, dict[str, Any]], first: str, second: str, names: Sequence[str] = (*HEADLINE, "window_recall_all", "seconds")
) -> Table:
    """`compare`'s result; a figure whose interval excludes 0 is marked."""
    result = Table(title=f"{first} against {second}", caption="difference with its 95 % interval, paired bootstrap over questions", title_justify="left")
    for heading in ("figure", first, second, "difference", "95 %", "p", ""):
        result.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for name in names:
        if name not in comparison:
            continue
        row = comparison[name]
        verdict = "[green]better[/]" if row["better"] else "[red]worse[/]" if row["worse"] else "[dim]undecided[/]"
        digits = 3 if name in (*FRACTIONS, "seconds") or name.startswith("ECE") else 1
        result.add_row(name, _show(name, row["first"]), _show(name, row["second"]), f"{row['difference']:+.{digits}f}",
                       f"{row['low']:+.{digits}f} … {row['high']:+.{digits}f}", f"{row['p']:.4f}", verdict)  # fmt: skip
    return result
