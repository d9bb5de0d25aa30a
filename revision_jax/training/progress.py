"""What a person sees of a running training: a live bar with the time left on a terminal, otherwise one plain line a row of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from revision_jax.training.metrics import TIMES

HIDDEN = {"stage", "step", "steps", "learning_rate", "grad_norm", *TIMES} - {"mfu"}


def duration(seconds: float) -> str:
    """71 -> "1m11s", 3700 -> "1h01m"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
    """Use in a `with`. Silent on every process but the first. Writes to stderr."""

    def __init__(self, total: int, console: Console | None = None):
        self.total, self.done = total, 0
        self.console = console or Console(stderr=True, quiet=jax.process_index() != 0, highlight=False)
        self.bar: Bar | None = None
        self.rate_since: tuple[float, int] | None = None
        if self.console.is_terminal and not self.console.quiet:
            self.bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                           TextColumn("{task.fields[shown]}"), console=self.console)
            self.task = self.bar.add_task("training", total=total, shown="")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Counts steps; `steps` above one are those an earlier run has taken."""
        self.done += steps
        if self.bar is not None:
            self.bar.advance(self.task, steps)
        if steps > 1:
            self.rate_since = None

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def report(self, row: Mapping[str, Any]) -> None:
        """A row of metrics: beside the bar, or as a line with the time left."""
        shown = " ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in HIDDEN)
        if self.bar is not None:
            self.bar.update(self.task, description=f"stage {row['stage']}", shown=shown)
            return
        now = time.monotonic()
        since, first = self.rate_since or (now, self.done)
        self.rate_since = (since, first)
        left = f", {duration((now - since) / (self.done - first) * (self.total - self.done))} left" if self.done > first else ""
        self.say(f"stage {row['stage']} step {row['step']}/{row['steps']}: {shown} ({row['steps_per_s']:.2f} steps/s{left})")
