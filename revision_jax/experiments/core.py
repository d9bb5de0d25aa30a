"""What an experiment is: a question, and cells that answer it. A cell is one setting of one thing, measured by itself and kept as one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from revision_jax.evaluation.outcome import Outcome

if TYPE_CHECKING:
    from revision_jax.experiments.bench import Bench
    from revision_jax.experiments.charts import Chart
    from revision_jax.experiments.rows import Row


@dataclass(frozen=True)
class Measured:
    """What a cell gives: every question's answer, from which the figures follow, and figures that no single question has (flat, name to number)."""

    outcomes: list[Outcome]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """row: its name in the table; cells of one row differ in their seed alone. settings: JSON, all that the result depends on besides the checkpoint; a cell
    whose settings changed is measured anew. at: its place on the axes of a chart."""

    row: str
    settings: dict[str, Any]
    measure: Callable[[Bench], Measured]
    seed: int | None = None
    at: tuple[float | str, ...] = ()

    @property
    def name(self) -> str:
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class Experiment:
    """asks: one sentence. figures: columns of the table, names of `evaluation.figures` or of `Measured.figures`; what a question costs is always there.
    reference: the row that the others are set against, "" for the first. videos: test videos unless told otherwise. notes: what must be known to read the
    figures. trains: its cells train a decoder, one for each seed."""

    name: str
    asks: str
    cells: Callable[[Bench], Sequence[Cell]]
    figures: tuple[str, ...]
    chart: Callable[[Sequence[Row]], Chart]
    reference: str = ""
    videos: int = 20
    notes: tuple[str, ...] = ()
    trains: bool = False
