"""`launch.bench startup`: from the import to the first answer, where everything that can be kept on disk is there: features, compiled code, exported programs.

Each figure is the median of five fresh processes, which ask five questions about an hour of video. One process before them fills the caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from launch.benches.commands import QUERIES, rendered, timed


def startup(options: argparse.Namespace) -> dict[str, float | int]:
    """Seconds of the parts, of all of it by wall clock and processor, and of `launch.ground` as a whole command."""
    video, cache = rendered(options.workdir, 3600), options.workdir / "cache"
    answering = [sys.executable, "-m", "launch.benches.startup", options.checkpoint, str(cache), str(video)]
    command = [sys.executable, "-m", "launch.ground", str(video), "--checkpoint", options.checkpoint, "--cache", str(cache), "--query"]
    timed([*command, QUERIES[0]])
    runs, commands = [], []
    for query in QUERIES:
        runs.append(timed([*answering, query]))
        commands.append(timed([*command, query]))
    parts = [json.loads(run.printed) for run in runs]
    figures = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    figures["the process, processor (s)"] = statistics.median(run.cpu_seconds for run in runs)
    figures["a further question as a new command (s)"] = statistics.median(run.seconds for run in commands)
    figures["the command, processor (s)"] = statistics.median(run.cpu_seconds for run in commands)
    return figures


def answer(checkpoint: str, cache: str, video: str, query: str) -> dict[str, float]:
    """Asks one question in this process; seconds of each part and of all."""
    marks = [time.perf_counter()]
    mark = lambda: marks.append(time.perf_counter())
    from revision_jax import Grounder

    mark()
    grounder = Grounder.from_pretrained(checkpoint, cache_dir=Path(cache))
    mark()
    encoded = grounder.encode(video)
    mark()
    grounder.ground(encoded, [query])
    mark()
    names = ("import (s)", "model read (s)", "features found (s)", "first answer (s)")
    seconds = {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}
    return {**seconds, "import to first answer (s)": marks[-1] - marks[0]}


if __name__ == "__main__":
    print(json.dumps(answer(*sys.argv[1:])))
