"""An experiment's result as a page of markdown: what was asked, the figures of every row, each row against the reference, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from revision_jax.evaluation import figures
from revision_jax.evaluation.report import FRACTIONS
from revision_jax.experiments.core import Cell, Experiment
from revision_jax.experiments.rows import NOISE, Difference, Row, reference_of

LABELS = {"seconds": "seconds", "prompts": "decoder prompts", "tokens": "visual tokens", "AUROC_right": "AUROC of right", "AUROC": "AUROC of presence"}


def page(experiment: Experiment, found: Sequence[Row], done: Sequence[tuple[Cell, dict[str, Any]]], command: str, picture: str = "") -> str:
    """The whole page. done: the finished cells with their records; command: what measures all of them; picture: the file beside it."""
    reference = reference_of(found, experiment.reference)
    lines = [f"# {experiment.name}", "", experiment.asks, "", *_figures(experiment, found), ""]
    if len(found) > 1:
        lines += [*_against(experiment, found, reference), ""]
    if picture:
        lines += [f"![{experiment.name}]({picture})", ""]
    lines += [*(f"- {note}" for note in (*experiment.notes, *_reading(experiment, found, done))), "", *_made(experiment, done, command)]
    return "\n".join(lines) + "\n"


def _columns(experiment: Experiment, found: Sequence[Row]) -> list[str]:
    """Figures that any row has, in the experiment's order; what a question costs comes last."""
    return [name for name in dict.fromkeys((*experiment.figures, *figures.COST)) if any(_known(row.figures.get(name)) for row in found)]


def _figures(experiment: Experiment, found: Sequence[Row]) -> list[str]:
    names = _columns(experiment, found)
    lines = [_line(["", *(LABELS.get(name, name) for name in names), "questions"]), _line(["---"] * (len(names) + 2))]
    for row in found:
        cells = []
        for name in names:
            value, interval = row.figures.get(name), None if name in row.extra else row.intervals.get(name)
            told = "" if interval is None else f" ({shown(name, interval[0])} to {shown(name, interval[1])})"
            cells.append(f"{shown(name, value)}{told}" if _known(value) else "-")
        count = f"{len(row.runs[0])}" + (f" x {len(row.runs)} seeds" if len(row.runs) > 1 else "")
        lines.append(_line([row.name, *cells, count]))
    return lines


def _against(experiment: Experiment, found: Sequence[Row], reference: Row) -> list[str]:
    others = [row for row in found if row is not reference]
    differences = [row.against(reference) for row in others]
    names = [name for name in _columns(experiment, found) if any(name in one for one in differences)]
    lines = [f"Less **{reference.name}**, with the 95 % interval of the difference:", ""]
    lines += [_line(["", *(LABELS.get(name, name) for name in names), "questions"]), _line(["---"] * (len(names) + 2))]
    for row, one in zip(others, differences, strict=True):
        same = "the same" if row.pairs_with(reference) else "others"
        lines.append(_line([row.name, *(told(name, one.get(name)) for name in names), same]))
    return lines


def told(name: str, difference: Difference | None) -> str:
    """A difference in figures and in words."""
    if difference is None:
        return "-"
    value, low, high = (shown(name, number, "+") for number in (difference.value, difference.low, difference.high))
    words = difference.verdict if difference.verdict == NOISE else f"**{difference.verdict}**"
    return f"{value} ({low} to {high}), {words}"


def shown(name: str, value: float | None, sign: str = "") -> str:
    """A figure with the digits that it deserves."""
    if not _known(value):
        return "-"
    digits = 3 if name in FRACTIONS or name.startswith("ECE") else 2 if name == "seconds" else 1
    return f"{value:{sign}.{digits}f}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _reading(experiment: Experiment, found: Sequence[Row], done: Sequence[tuple[Cell, dict[str, Any]]]) -> list[str]:
    cost = "a question costs seconds (encoding not counted), sequences that the decoder reads (prompts), and visual tokens in them"
    notes = [f"R1@k, mIoU, mAP, RejF1 and recall in percent, in brackets the 95 % interval; {cost}."]
    if experiment.trains:
        runs, steps = len(found[0].runs), done[0][1]["about"]["settings"]["steps"]
        notes.append(f"Training steps: {', '.join(f'{count} in `{task}`' for task, count in steps.items())}.")
        notes.append(f"Means of {runs} seeds; questions and seeds are resampled, and where the seeds disagree about a sign, it is noise.")
    return notes


def _made(experiment: Experiment, done: Sequence[tuple[Cell, dict[str, Any]]], command: str) -> list[str]:
    about, made = done[0][1]["about"], done[0][1]["made"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "jax", "flax"))
    hours = sum(record["made"]["seconds"] for _, record in done) / 3600
    dates = sorted({record["made"]["date"] for _, record in done})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    what = "Encoders" if experiment.trains else "Checkpoint"  # of a checkpoint that is trained anew nothing else is kept
    told = f"{what} {about['checkpoint']}, world {about['world']}, {versions}, {made['machine']}; {len(done)} cells in {hours:.2f} h, {when}."
    return ["```bash", command, "```", "", told]
