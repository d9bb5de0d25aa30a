"""Finished cells on disk, a JSON file each, written whole or not at all: WORKDIR/EXPERIMENT/cells/CELL.json.

    {"format", "about": what the cell depends on, "figures": flat, "extra": those of them that follow from no question, "questions": every answer,
     "config": the checkpoint's, "made": versions, command, seconds, date}

A file counts as finished if its "about" is what is asked for now: a changed checkpoint or setting measures the cell again.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from revision_jax.config import ExperimentConfig
from revision_jax.data.synthetic.world import WORLD_VERSION
from revision_jax.evaluation import figures
from revision_jax.evaluation.outcome import Outcome
from revision_jax.experiments.core import Cell, Experiment, Measured
from revision_jax.files import write_text

FORMAT = 1


class Journal:
    """The cells of one experiment. checkpoint, config: identity and config of what is measured; command: what measures it."""

    def __init__(self, workdir: Path, experiment: Experiment, checkpoint: str, config: ExperimentConfig, command: str = ""):
        self.folder, self.experiment = workdir / experiment.name / "cells", experiment
        self.checkpoint, self.config, self.command = checkpoint, config, command

    def file(self, cell: Cell) -> Path:
        """Where a cell is kept; cells of different names never share a file."""
        plain = re.sub(r"[^a-z0-9.]+", "-", cell.name.lower()).strip("-")
        return self.folder / f"{plain}.json"

    def about(self, cell: Cell) -> dict[str, Any]:
        """All that the cell depends on, as JSON gives it back."""
        about = {
            "experiment": self.experiment.name, "cell": cell.row, "seed": cell.seed, "settings": cell.settings, "checkpoint": self.checkpoint,
            "world": WORLD_VERSION,
        }  # fmt: skip
        return json.loads(json.dumps(about))

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a finished cell; None where there is none, or one of something else."""
        try:
            record = json.loads(self.file(cell).read_text(encoding="utf-8"))
            known = record["format"] == FORMAT and record["about"] == self.about(cell)
            outcomes(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record if known else None

    def write(self, cell: Cell, measured: Measured, seconds: float) -> dict[str, Any]:
        """Keeps a cell that was measured just now; returns its record."""
        values = figures.figures(measured.outcomes) | measured.figures
        made = {
            "python": platform.python_version(), **{name: version(name) for name in ("jax", "flax", "numpy")}, "machine": platform.machine(),
            "command": self.command, "seconds": round(seconds, 1), "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        record = {
            "format": FORMAT, "about": self.about(cell), "made": made,
            "figures": {name: None if value is None or not math.isfinite(value) else value for name, value in values.items()},
            "extra": sorted(measured.figures), "config": self.config.to_dict(), "questions": [outcome.to_json() for outcome in measured.outcomes],
        }  # fmt: skip
        text = json.dumps(record)
        write_text(self.file(cell), text + "\n")
        return json.loads(text)

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises ValueError where two cells would share a file."""
        files = [self.file(cell) for cell in cells]
        if len(set(files)) != len(files):
            raise ValueError(f"{self.experiment.name}: cells must have different names, are {', '.join(cell.name for cell in cells)}")


def outcomes(record: dict[str, Any]) -> list[Outcome]:
    """The answers of a record."""
    return [Outcome.from_json(values) for values in record["questions"]]
