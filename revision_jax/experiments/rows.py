"""Cells as rows of a table: a row is one setting, with one run or, where it was trained, one for each seed; its figures have 95 % bootstrap intervals.

Every row is set against the reference row. On the same questions the two are resampled together (`figures.paired_bootstrap`), on others each by itself.
Where there are several runs, runs are resampled too. A difference is told as one only if its interval leaves out 0, and if every run by itself has its sign:
three seeds resampled say less than they seem to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from revision_jax.evaluation import figures
from revision_jax.evaluation.outcome import Outcome, columns
from revision_jax.experiments.charts import Bars, Lines, Point
from revision_jax.experiments.core import Cell
from revision_jax.experiments.journal import outcomes

BETTER, WORSE, NOISE = "better", "worse", "inside the noise"


@dataclass(frozen=True)
class Difference:
    """Of a figure, row less reference. low, high: its interval. verdict: better, worse or inside the noise."""

    value: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, eq=False)
class Row:
    """runs: the answers of each seed, in one order of questions. figures: the mean over runs. extra: names of those that no question has."""

    name: str
    runs: tuple[tuple[Outcome, ...], ...]
    figures: dict[str, float]
    extra: tuple[str, ...] = ()
    at: tuple[float | str, ...] = ()
    resamples: int = figures.RESAMPLES

    @cached_property
    def table(self) -> figures.Columns:
        """`columns` of all runs, one after the other."""
        return columns([outcome for run in self.runs for outcome in run])

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float] | None]:
        if not self.runs[0]:
            return {}
        return figures.bootstrap(self.table, figures.weighted, resamples=self.resamples, runs=len(self.runs))

    @property
    def keys(self) -> list[tuple]:
        """What the questions are, and their truth: rows with the same keys can be paired."""
        return [(outcome.key, outcome.truth) for outcome in self.runs[0]]

    def point(self, name: str, x: float = 0.0) -> Point:
        """A figure for a chart; NaN where the row has none."""
        value = self.figures.get(name, math.nan)
        value = math.nan if value is None else value
        low, high = (self.intervals.get(name) if name not in self.extra else None) or (value, value)
        return Point(value, low, high, x)

    def pairs_with(self, other: Row) -> bool:
        return self.keys == other.keys and len(self.runs) == len(other.runs)

    def against(self, other: Row) -> dict[str, Difference]:
        """Every figure of this row less the other's."""
        if not self.runs[0] or not other.runs[0] or len(self.runs) != len(other.runs):
            return {}
        options = {"resamples": self.resamples, "runs": len(self.runs), "same": self.pairs_with(other)}
        found = figures.paired(self.table, other.table, figures.weighted, figures.LOWER_IS_BETTER, **options)
        alone = [(figures.figures(list(mine)), figures.figures(list(theirs))) for mine, theirs in zip(self.runs, other.runs, strict=True)]
        return {name: _difference(values, [(a[name], b[name]) for a, b in alone]) for name, values in found.items()}


def _difference(values: dict[str, Any], alone: Sequence[tuple[float | None, float | None]]) -> Difference:
    signs = {np.sign(a - b) for a, b in alone if a is not None and b is not None}
    certain = (values["better"] or values["worse"]) and len(signs) == 1
    verdict = NOISE if not certain else BETTER if values["better"] else WORSE
    return Difference(values["difference"], values["low"], values["high"], verdict)


def rows(done: Sequence[tuple[Cell, dict[str, Any]]], resamples: int = figures.RESAMPLES) -> list[Row]:
    """The rows of finished cells (cell, its record), in their order. Raises ValueError where the runs of a row asked different questions."""
    groups: dict[str, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell, record in done:
        groups.setdefault(cell.row, []).append((cell, record))
    return [_row(name, group, resamples) for name, group in groups.items()]


def _row(name: str, group: list[tuple[Cell, dict[str, Any]]], resamples: int) -> Row:
    runs = tuple(tuple(sorted(outcomes(record), key=lambda outcome: outcome.key)) for _, record in group)
    if len({tuple(outcome.key for outcome in run) for run in runs}) > 1:
        raise ValueError(f"{name}: its runs asked different questions")
    found = [record["figures"] for _, record in group]
    mean = {}
    for figure in found[0]:
        values = [one[figure] for one in found if one.get(figure) is not None]
        mean[figure] = float(np.mean(values)) if values else math.nan
    return Row(name, runs, mean, tuple(group[0][1]["extra"]), group[0][0].at, resamples)


def reference_of(found: Sequence[Row], name: str) -> Row:
    """The row that others are set against: the one of this name, or the first."""
    return next((row for row in found if row.name == name), found[0])


# ------------------------------------------------------------------------------------------------------------------------------ charts


def bars(*names: str) -> Callable[[Sequence[Row]], Bars]:
    """A chart of bars, a panel for each figure."""
    return lambda found: Bars({name: {row.name: row.point(name) for row in found} for name in names})


def over(axis: str, *names: str, logarithmic: bool = False) -> Callable[[Sequence[Row]], Lines]:
    """A chart of lines over the number that the rows' cells stand at, a panel for each figure; rows that stand nowhere are left out."""

    def chart(found: Sequence[Row]) -> Lines:
        placed = [row for row in found if row.at]
        return Lines({name: {name: [row.point(name, float(row.at[0])) for row in placed]} for name in names}, axis, logarithmic)

    return chart
