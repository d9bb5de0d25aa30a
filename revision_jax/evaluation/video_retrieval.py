"""Which of many videos is it? Text-to-video retrieval as on MSR-VTT: each question's own video has a rank among all of them.

    R@1, R@5, R@10    share of questions whose video has at most this rank, in percent
    MdR, MnR          median and mean rank; 1 is best

Videos that score alike share their mean rank: of two at the top each has 1.5. (The code of CLIP4Clip counts a question once for every video that ties with its
own.) Sources: Yu et al., ECCV 2018 (JSFusion, 1,000 pairs: 1k-A); the figures of CLIP4Clip (arXiv 2104.08860), which ReVisionLLM's table follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table

from revision_jax.errors import UserError
from revision_jax.evaluation import exam, figures
from revision_jax.evaluation import report as reports
from revision_jax.evaluation.datasets import Item
from revision_jax.grounding.grounder import Grounder
from revision_jax.grounding.retrieve import rank_videos
from revision_jax.grounding.source import Source

FORMAT, KIND = 1, "text-to-video retrieval"
RECALL_RANKS = (1, 5, 10)
FIGURES = (*(f"R@{rank}" for rank in RECALL_RANKS), "MdR", "MnR")
LOWER_IS_BETTER = ("MdR", "MnR")
Progress = Callable[[int, int, str], None]  # videos done, of, what is being done


def ranks(scores: Float[np.ndarray, "q v"], own: Int[np.ndarray, "q"]) -> Float[np.ndarray, "q"]:
    """Rank of video `own` of each question: 1 + those that score higher + half of those that score the same."""
    mine = scores[np.arange(len(scores)), own][:, None]
    return 1.0 + (scores > mine).sum(1) + ((scores == mine).sum(1) - 1) / 2


def weighted(table: dict[str, Float[np.ndarray, "n"]], weights: Float[np.ndarray, "r n"]) -> dict[str, Float[np.ndarray, "r"]]:
    """Every figure of the column "rank" under every row of weights, which say how often a question counts (whole numbers, at least one above 0)."""
    rank, total = table["rank"], weights.sum(axis=1)
    result = {f"R@{limit}": 100.0 * (weights @ (rank <= limit)) / total for limit in RECALL_RANKS}
    order = np.argsort(rank, kind="stable")
    through = np.cumsum(weights[:, order], axis=1)
    middle = [rank[order][(through >= place[:, None]).argmax(axis=1)] for place in (np.ceil(total / 2), np.floor(total / 2) + 1)]
    return {**result, "MdR": (middle[0] + middle[1]) / 2, "MnR": weights @ rank / total}


class _Opened(Sequence):
    """The sources of videos, opened when they are asked for: there are more videos than files may be open."""

    def __init__(self, grounder: Grounder, items: Sequence[Item], progress: Progress | None):
        self.grounder, self.items, self.progress = grounder, items, progress

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> list[Source]: ...
    def __getitem__(self, index):
        if not isinstance(index, slice):
            return exam.video_of(self.grounder, self.items[index]).source
        numbers = range(len(self.items))[index]
        if self.progress is not None:
            self.progress(numbers.start, len(self.items), "ranking videos")
        return [self[number] for number in numbers]


def run(grounder: Grounder, items: Sequence[Item], about: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Every question asked about all of the videos; the report.

    All FIGURES at the top level, then `kind`, `intervals` (95 % bootstrap over questions), `counts`, `run` (`about`) and `questions` with their ranks. Raises
    ConfigError for a model without a level of kind "video", UserError for a video or question that cannot be used, and where there is no question.
    """
    asked = [(number, question) for number, item in enumerate(items) for question in item.questions]
    if not asked:
        raise UserError("no question was asked: the split is empty")
    found = rank_videos(grounder.programs, _Opened(grounder, items, progress), [question.query for _, question in asked])
    scores = np.zeros((len(asked), len(items)))
    for row, ranked in zip(scores, found, strict=True):
        row[[one.video for one in ranked]] = [one.score for one in ranked]
    rank = ranks(scores, np.asarray([number for number, _ in asked]))
    questions = [
        {"query_id": question.query_id, "video": items[number].name, "query": question.query, "rank": float(place)}
        for (number, question), place in zip(asked, rank, strict=True)
    ]
    return build(questions, len(items), about)


def build(questions: list[dict[str, Any]], videos: int, about: dict[str, Any], *, resamples: int = figures.RESAMPLES) -> dict[str, Any]:
    """The report of questions with their "rank"."""
    table = _table(questions)
    values = weighted(table, np.ones((1, len(questions))))
    intervals = {name: list(value) for name, value in figures.bootstrap(table, weighted, resamples=resamples).items()}
    return {
        "format": FORMAT, "kind": KIND, **{name: float(values[name][0]) for name in FIGURES}, "intervals": intervals,
        "counts": {"questions": len(questions), "videos": videos}, "run": about, "questions": questions,
    }  # fmt: skip


def _table(questions: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {"rank": np.asarray([question["rank"] for question in questions], np.float64)}


def load(path: str | Path) -> dict[str, Any]:
    """Reads what `report.save` wrote of `build`'s; raises UserError for anything else."""
    return reports.read(path, _check, f"an evaluation of {KIND}")


def _check(report: dict[str, Any]) -> None:
    if report["kind"] != KIND or not _table(report["questions"])["rank"].size:
        raise ValueError(f"kind is {report['kind']!r}")
    _keys(report)


def _keys(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(question["query_id"], question["video"]) for question in report["questions"]]


def compare(first: dict[str, Any], second: dict[str, Any], *, resamples: int = figures.RESAMPLES) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of every figure of two reports (see `figures.paired`). Raises UserError unless both asked the same about as many videos."""
    if _keys(first) != _keys(second) or first["counts"]["videos"] != second["counts"]["videos"]:
        raise UserError("the two runs asked different questions, or about other videos: evaluate both on the same split with the same --limit")
    return figures.paired(_table(first["questions"]), _table(second["questions"]), weighted, LOWER_IS_BETTER, resamples=resamples)


def table(report: dict[str, Any]) -> Table:
    """The figures with their intervals."""
    counts = report["counts"]
    caption = f"{counts['questions']} questions about {counts['videos']} videos"
    result = Table("figure", title=KIND, caption=caption, title_justify="left", caption_justify="left")
    result.add_column("", justify="right", style="bold")
    result.add_column("95 %", justify="right", style="dim")
    for name in FIGURES:
        low, high = report["intervals"][name]
        result.add_row(name, f"{report[name]:.1f}", f"{low:.1f} – {high:.1f}")
    return result
