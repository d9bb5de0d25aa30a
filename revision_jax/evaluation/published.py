"""What papers report on a dataset, and a run's table beside theirs.

Figures are copied from the papers named, in percent, to the digits given there; where a paper reports none, there is none. They were made with other features,
negatives and roundings than one another's (ReVisionLLM rounds an IoU to two digits and wants it above the threshold, here one that lies on it reaches it), so
differences of a few tenths say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from revision_jax.errors import UserError
from revision_jax.evaluation import moments

MAD_FIGURES = tuple(f"R{rank}@{iou}" for rank in moments.RECALL_RANKS for iou in (0.1, 0.3, 0.5))
VIDCHAPTERS_FIGURES = tuple(f"R1@{iou}" for iou in (0.3, 0.5, 0.7, 0.9))
OURS = "here"


@dataclass(frozen=True)
class Published:
    """A column: a method, the arXiv number of the paper that reports it (its own, or one that lists it), and figures in percent."""

    method: str
    source: str
    figures: Mapping[str, float] = field(default_factory=dict)


def _mad(method: str, source: str, *values: float, **more: float) -> Published:
    """values: R1 and R5 at IoU 0.1, at 0.3, at 0.5, as papers on MAD list them."""
    names = [f"R{rank}@{iou}" for iou in (0.1, 0.3, 0.5) for rank in (1, 5)]
    return Published(method, source, {**dict(zip(names, values, strict=True)), **{name.replace("_", "@0."): value for name, value in more.items()}})


def _vidchapters(method: str, *values: float) -> Published:
    return Published(method, "2411.14901", dict(zip(VIDCHAPTERS_FIGURES, values, strict=True)))


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "mad": (
        _mad("CLIP, zero-shot", "2411.14901", 6.6, 15.1, 3.1, 9.9, 1.5, 5.4),
        _mad("CONE", "2411.14901", 8.90, 20.51, 6.87, 16.11, 4.10, 9.59, R10_3=21.53, R50_3=34.73),
        _mad("SOONet", "2411.14901", 11.26, 23.21, 9.00, 19.64, 5.32, 13.14),
        _mad("SnAG", "2411.14901", 10.28, 24.42, 8.46, 20.60, 5.55, 13.75),
        _mad("RGNet", "2411.14901", 12.43, 25.12, 9.48, 18.72, 5.61, 10.86),
        _mad("DeCafNet", "2505.16376", 13.25, 27.73, 10.96, 23.68, 7.06, 16.13),
        _mad("ReVisionLLM", "2411.14901", 15.0, 25.1, 11.0, 18.8, 5.8, 10.5),
        _mad("ReVisionLLM-I", "2411.14901", 17.3, 31.4, 12.7, 23.5, 6.7, 13.1),
    ),
    "vidchapters": (
        _vidchapters("CLIP, zero-shot", 10.7, 5.2, 2.3, 0.5),
        _vidchapters("Moment-DETR", 37.4, 27.3, 17.6, 6.4),
        _vidchapters("VTimeLLM + CONE", 10.6, 4.1, 1.6, 0.2),
        _vidchapters("ReVisionLLM", 33.8, 27.4, 21.8, 15.2),
    ),
}
FIGURES = {"mad": MAD_FIGURES, "vidchapters": VIDCHAPTERS_FIGURES}


def columns(dataset: str, report: Mapping[str, Any] | None = None) -> tuple[list[str], list[list[str]]]:
    """(heading, rows) of the papers' table of a dataset (NAME or NAME/CONFIG), a figure a row, a method a column, the last one this run's.

    report: of a run (`report.build`); None leaves its column empty. A figure of more candidates than were asked for (`--top-k`) has none. Raises UserError for
    a dataset of which no figures are known.
    """
    name = dataset.partition("/")[0]
    check(name)
    known = PUBLISHED[name]
    rows = []
    for figure in FIGURES[name]:
        theirs = [f"{one.figures[figure]:g}" if figure in one.figures else "-" for one in known]
        rows.append([figure, *theirs, "" if report is None else _ours(report, figure)])
    return ["", *(one.method for one in known), OURS], rows


def check(dataset: str) -> None:
    """Raises UserError for a dataset of which no figures are known."""
    name = dataset.partition("/")[0]
    if name not in PUBLISHED:
        raise UserError(f"--published: no figures of papers are known here for {name!r}, only for {', '.join(PUBLISHED)}")


def _ours(report: Mapping[str, Any], figure: str) -> str:
    rank = int(figure[1:].partition("@")[0])
    value = report.get(figure)
    return "-" if value is None or rank > report.get("run", {}).get("top_k", rank) else f"{value:.1f}"


def table(dataset: str, report: Mapping[str, Any]) -> Table:
    """For the terminal."""
    heading, rows = columns(dataset, report)
    counts = report["counts"]
    result = Table(title=f"{dataset}, percent: the papers' figures, and this run's on {counts['questions']} questions about {counts['videos']} videos",
                   title_justify="left")  # fmt: skip
    for number, name in enumerate(heading):
        result.add_column(name, justify="right" if number else "left", style="bold" if name == OURS else None)
    for row in rows:
        result.add_row(*row)
    return result


def markdown(dataset: str, report: Mapping[str, Any] | None = None) -> str:
    """For a page."""
    heading, rows = columns(dataset, report)
    line = lambda cells: f"| {' | '.join(cells)} |\n"
    return line(heading) + line(["---", *("--:" for _ in heading[1:])]) + "".join(line(row) for row in rows)
