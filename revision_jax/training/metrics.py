"""Training metrics as JSON lines: one row every few steps, means over the steps since the row before.

Only process 0 writes. A resumed run first drops the rows of steps that it will take again, so that the file reads like that of a run
which was never interrupted (apart from times).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from revision_jax.errors import UserError


class NotFinite(UserError):
    """The loss or the gradient stopped being a number; the message names stage and step."""


class MetricsLog:
    """Collects the metrics of one stage's steps. `add` takes them in order and returns a row whenever one is due."""

    def __init__(self, path: Path, stage: str, steps: int, every: int):
        self.path, self.stage, self.steps, self.every = path, stage, steps, max(1, every)
        self.sums: dict[str, float] = {}
        self.count = 0
        self.waited = 0.0
        self.since = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Notes time spent waiting for a batch."""
        self.waited += seconds

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> dict[str, Any] | None:
        """step: steps done, this one included. Blocks until the device has finished it. Raises NotFinite."""
        values = {name: float(np.asarray(value)) for name, value in jax.device_get(dict(metrics)).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                hint = f"try a lower stages.{self.stage}.learning_rate; the last checkpoint is sound"
                raise NotFinite(f"stage {self.stage}, step {step}: {name} is {values[name]}; {hint}")
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if step % self.every and step != self.steps:
            return None
        seconds = time.perf_counter() - self.since
        row = {"stage": self.stage, "step": step, "steps": self.steps, **{name: total / self.count for name, total in sorted(self.sums.items())}}
        row |= {"learning_rate": values.get("learning_rate", 0.0), "steps_per_s": self.count / max(seconds, 1e-9), "wait_s": self.waited / self.count}
        if jax.process_index() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.sums, self.count, self.waited, self.since = {}, 0, 0.0, time.perf_counter()
        return row


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def cut_rows(path: str | os.PathLike, finished: Collection[str], stage: str, step: int) -> None:
    """Keeps the rows of `finished` stages and those of `stage` up to `step` (steps done), at once or not at all. Process 0 only."""
    path = Path(path)
    if jax.process_index() != 0 or not path.is_file():
        return
    kept = [row for row in read_rows(path) if row["stage"] in finished or (row["stage"] == stage and row["step"] <= step)]
    building = path.with_name(path.name + ".new")
    building.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    building.replace(path)
