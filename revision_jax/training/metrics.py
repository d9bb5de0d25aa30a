"""Training metrics as JSON lines: one row every few steps, means over the steps since the row before.

Only process 0 writes. A resumed run first drops the rows of steps that it will take again, so that the file reads like that of a run
which was never interrupted (apart from times).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from revision_jax.config import ConfigError
from revision_jax.errors import UserError
from revision_jax.training.trackers import Tracker


class NotFinite(UserError):
    """The loss or the gradient stopped being a number; the message names stage, step and examples."""


# What depends on the clock and the machine; the rest of a row is the same in every run. Seconds are wall clock.
TIMES = ("steps_per_s", "step_s_p50", "step_s_p95", "wait_share", "tokens_per_s", "slots_per_s", "mfu", "memory_gib")
SKIPS = 10  # steps in a row that are not finite: then it is not a bad batch


class MetricsLog:
    """Collects the metrics of one stage's steps. `add` takes them in order and returns a row whenever one is due.

    batch: rows of a step, for messages. skip: steps that are not finite were skipped, and are counted. peak: FLOPs per second of all devices together, or None.
    before: steps of the stages before this one, which trackers count on from.
    """

    def __init__(
        self, path: Path, stage: str, steps: int, every: int, *, batch: int = 0, skip: bool = False, peak: float | None = None,
        trackers: Sequence[Tracker] = (), before: int = 0,
    ):
        self.path, self.stage, self.steps, self.every, self.batch, self.skip, self.peak = path, stage, steps, max(1, every), batch, skip, peak
        self.trackers, self.before = trackers, before
        self.sums: dict[str, float] = {}
        self.count = self.skipped = self.skips_in_a_row = 0
        self.waited = self.flops = 0.0
        self.since = self.last = time.perf_counter()
        self.seconds: list[float] = []
        self.saved: dict[str, list[float]] = {}  # since the last checkpoint

    def wait(self, seconds: float) -> None:
        """Notes time spent waiting for a batch."""
        self.waited += seconds

    def add(self, step: int, metrics: Mapping[str, jax.Array], flops: float = 0.0) -> dict[str, Any] | None:
        """step: steps done, this one included; flops: of this step, all devices. Blocks until the device has finished it. Raises NotFinite."""
        values = {name: float(np.asarray(value)) for name, value in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        self.flops += flops
        if self._finite(step, values):
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.saved.setdefault(name, []).append(value)
            self.count += 1
        if step % self.every and step != self.steps:
            return None
        return self._row(step, values)

    def _finite(self, step: int, values: Mapping[str, float]) -> bool:
        bad = next((name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))), None)
        self.skips_in_a_row = 0 if bad is None else self.skips_in_a_row + 1
        if bad is None:
            return True
        self.skipped += 1
        first = (step - 1) * self.batch
        told = f"stage {self.stage}, step {step}: {bad} is {values[bad]}"
        told += f" (examples {first} to {first + self.batch - 1} of the stage)" if self.batch else ""
        if self.skip and self.skips_in_a_row < SKIPS:
            if jax.process_index() == 0:
                print(f"{told}; skipped", file=sys.stderr)
            return False
        more = f", the {SKIPS}th in a row" if self.skip else ""
        raise NotFinite(f"{told}{more}; try a lower stages.{self.stage}.learning_rate; the last checkpoint is sound")

    def _row(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        seconds, steps = max(time.perf_counter() - self.since, 1e-9), len(self.seconds)
        tokens = {name: self.sums.pop(name) for name in ("tokens", "slots") if name in self.sums}
        row = {"stage": self.stage, "step": step, "steps": self.steps, **{name: total / self.count for name, total in sorted(self.sums.items())}}
        row |= {"learning_rate": values.get("learning_rate", 0.0), **({"skipped": self.skipped} if self.skip else {})}
        row |= {"steps_per_s": steps / seconds, **{f"step_s_p{q}": float(np.percentile(self.seconds, q)) for q in (50, 95)}}
        row |= {"wait_share": min(1.0, self.waited / seconds), **{f"{name}_per_s": total / seconds for name, total in tokens.items()}}
        if self.peak and self.flops:
            row["mfu"] = self.flops / seconds / self.peak
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            row["memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        if jax.process_index() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker(self.before + step, row)
        self.sums, self.count, self.skipped, self.waited, self.flops, self.seconds, self.since = {}, 0, 0, 0.0, 0.0, [], time.perf_counter()
        return row

    def since_saved(self, name: str) -> float | None:
        """The mean of a metric over the steps since this was last called; None where all were skipped. Raises ConfigError for a metric that no step has."""
        found, self.saved = self.saved, {}
        if found and name not in found:
            raise ConfigError(f"stages.{self.stage}.best: no metric {name!r}; there are {', '.join(sorted(found))}")
        return sum(found[name]) / len(found[name]) if found else None


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
