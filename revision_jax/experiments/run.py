"""Running an experiment: the cells that are missing, then the page and the picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revision_jax.evaluation import figures
from revision_jax.experiments.bench import Bench
from revision_jax.experiments.charts import draw
from revision_jax.experiments.core import Cell, Experiment
from revision_jax.experiments.journal import Journal
from revision_jax.experiments.page import page
from revision_jax.experiments.rows import rows
from revision_jax.files import write_text

Done = list[tuple[Cell, dict[str, Any]]]
Progress = Callable[[int, int, str], None]  # cells done, of, the one that is being measured


def measure(experiment: Experiment, bench: Bench, command: str = "", progress: Progress | None = None) -> Done:
    """Every cell with its record; those that are finished are read, the others measured and kept one by one."""
    cells = list(experiment.cells(bench))
    journal = Journal(bench.workdir, experiment, bench.encoders if experiment.trains else bench.identity, bench.config, command)
    journal.check(cells)
    done: Done = []
    for number, cell in enumerate(cells):
        if progress is not None:
            progress(number, len(cells), cell.name)
        record = journal.read(cell)
        if record is None:
            began = time.perf_counter()
            measured = cell.measure(bench)
            record = journal.write(cell, measured, time.perf_counter() - began)
        done.append((cell, record))
    if progress is not None:
        progress(len(cells), len(cells), "")
    return done


def publish(experiment: Experiment, done: Done, out: Path, command: str, resamples: int = figures.RESAMPLES) -> Path:
    """Writes OUT/NAME.md and OUT/NAME.png; returns the page's path. command: what measures all cells, which may have been measured in parts."""
    found = rows(done, resamples)
    picture = draw(out / f"{experiment.name}.png", experiment.asks, experiment.chart(found))
    return write_text(out / f"{experiment.name}.md", page(experiment, found, done, command, picture.name))
