"""Made-up answers and cells, so that tables can be tested without a model."""

from __future__ import annotations

import random

from revision_jax.evaluation.outcome import Outcome
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.experiments.rows import bars


def answers(right: float, seed: int = 0, count: int = 60, video: str = "film") -> list[Outcome]:
    """`count` questions, every other one absent; of the present ones about the share `right` is answered right. Which ones depends on the seed."""
    rng, made = random.Random(seed), []
    for number in range(count):
        present, hit = number % 2 == 0, rng.random() < right
        truth = ((10.0, 20.0),) if present else ()
        span = (10.0, 20.0) if present and hit else (50.0, 60.0)
        confidence = 0.9 if present and hit else 0.2 + 0.001 * number
        made.append(
            Outcome(
                video=f"{video}-{number % 3}", query_id=str(number), query="a red ring", kind="one" if present else "absent", duration_s=100.0, truth=truth,
                moments=((*span, confidence, confidence > 0.5),), seconds=0.5, prompts=4.0, tokens=100.0,
            )
        )  # fmt: skip
    return made


def cell(row: str, outcomes: list[Outcome], seed: int | None = None, log: list | None = None, **settings) -> Cell:
    """A cell that gives these answers, and notes in `log` that it was measured."""

    def measure(bench) -> Measured:
        if log is not None:
            log.append(row if seed is None else (row, seed))
        return Measured(outcomes, {"extra": 1.5})

    return Cell(row, settings, measure, seed)


def experiment(cells: list[Cell], **options) -> Experiment:
    chart = options.pop("chart", bars("R1@0.5", "AUROC"))
    return Experiment("made_up", "What is made up?", lambda bench: cells, ("R1@0.5", "mIoU", "AUROC", "extra"), chart, **options)


