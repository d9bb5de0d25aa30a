"""A profiler trace of chosen steps of each stage: `<folder>/<stage>/`, a file a host, for TensorBoard's profile plugin, XProf or Perfetto."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from revision_jax.errors import UserError


def chosen_steps(text: str) -> range:
    """"10" or "10-12": steps of a stage, counted from 1. Raises UserError."""
    first, _, last = text.partition("-")
    if not first.isdigit() or (last and not last.isdigit()) or not 1 <= int(first) <= int(last or first):
        raise UserError(f"--profile {text}: wants a step or steps of a stage, from 1 on, such as 10 or 10-12")
    return range(int(first), int(last or first) + 1)


class Profile:
    """Called around every step. Before the first chosen step, and after the last, the devices are waited for: the trace holds these steps whole."""

    def __init__(self, steps: range, folder: str | os.PathLike):
        self.steps, self.folder, self.running = steps, Path(folder), False

    def before(self, stage: str, step: int, state: Any) -> None:
        if step == self.steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder / stage)
            self.running = True

    def after(self, step: int, state: Any) -> None:
        if self.running and step == self.steps[-1]:
            jax.block_until_ready(state)
            self.stop()

    def stop(self) -> None:
        """Ends a trace under way, as a stage may before its last chosen step."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
