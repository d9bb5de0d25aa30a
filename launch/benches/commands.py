"""What benches share: rendered videos to run commands on, questions to ask, and the clocks."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from launch.cli import counting_bar

QUERIES = (
    "a small red ring",
    "a large blue star moves to the left",
    "a green square turns white",
    "a yellow circle passes behind a black cross",
    "a striped cyan cross",
)


class Run(NamedTuple):
    """What a command took: wall and processor (user and system) seconds, the most resident memory in MiB, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    printed: str


def rendered(workdir: Path, seconds: int) -> Path:
    """A video of the rendered world; made once."""
    from launch import synthesize

    folder = workdir / f"{seconds}s"
    if not (folder / "video.mp4").exists():
        synthesize.main(["--seed", "11", "--duration", str(seconds), "--out", str(folder)])
    return folder / "video.mp4"


def timed(command: list[str]) -> Run:
    """Runs a command in a process of its own. Raises UserError if it fails."""
    from revision_jax.errors import UserError

    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        out.seek(0)
        printed = out.read()
    if status != 0:
        raise UserError(f"{' '.join(command[1:4])}: failed ({errors.strip().splitlines()[-1] if errors.strip() else 'no message'})")
    scale = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 2**20, printed)


def by_turns(makers: Mapping[str, Callable[[], Callable[[], object]]], repeats: int = 5, warm: bool = False) -> dict[str, float]:
    """Median wall seconds of runs that take turns, A B A B, `repeats` times; the first time, which compiles, does not count, unless all is `warm` already. A
    maker makes a run ready, which is not timed. On a terminal a bar counts the runs."""
    taken: dict[str, list[float]] = {name: [] for name in makers}
    turns = range(0 if warm else -1, repeats)
    with counting_bar("runs, left") as bar:
        task = bar.add_task("", total=len(turns) * len(makers)) if bar is not None else None
        for turn in turns:
            for name, make in makers.items():
                if bar is not None:
                    bar.update(task, description=name)
                run = make()
                began = time.perf_counter()
                run()
                if turn >= 0:
                    taken[name].append(time.perf_counter() - began)
                if bar is not None:
                    bar.advance(task)
    return {name: statistics.median(values) for name, values in taken.items()}
