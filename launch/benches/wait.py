"""`launch.bench wait`: what a person waits for on an hour of video.

In fresh processes the first question (reading, encoding, compiling, searching), and another one as a new command; a further one in the same process; how many
programs are compiled for ten minutes and for three hours; and, with --long, how much memory nine hours take beside one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time

from launch.benches.commands import QUERIES, rendered, timed


def wait(options: argparse.Namespace) -> dict[str, float | int]:
    """Figures of `launch.ground`; seconds are wall clock of whole commands unless they say otherwise."""
    hour, short, three = (rendered(options.workdir, seconds) for seconds in (3600, 600, 3 * 3600))
    cache = options.workdir / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "launch.ground", "--checkpoint", options.checkpoint, "--cache", str(cache)]
    figures: dict[str, float | int] = {}
    first = timed([*command, str(hour), "--query", QUERIES[0]])
    figures["first question on an hour, new command (s)"], figures["its peak memory (MiB)"] = first.seconds, first.peak_mib
    again = [timed([*command, str(hour), "--query", query]).seconds for query in QUERIES[1:4]]
    figures["a further question as a new command, median of 3 (s)"] = statistics.median(again)

    from revision_jax.grounding.grounder import Grounder

    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=cache)
    video = grounder.encode(hour)
    grounder.ground(video, [QUERIES[0]])
    seconds = []
    for query in QUERIES[1:]:
        began = time.perf_counter()
        grounder.ground(video, [query])
        seconds.append(time.perf_counter() - began)
    figures["a further question in the same process, median of 4 (s)"] = statistics.median(seconds)
    for name, path in (("ten minutes", short), ("three hours", three)):
        fresh = Grounder.from_pretrained(options.checkpoint, cache_dir=cache)
        fresh.ground(fresh.encode(path), [QUERIES[0]])
        figures[f"programs compiled for {name}"] = sum(fresh.programs.compiled.values())
    if options.long:
        shutil.rmtree(cache / "features", ignore_errors=True)
        nine = rendered(options.workdir, 9 * 3600)
        short, long = (timed([*command, str(video), "--query", QUERIES[0]]) for video in (hour, nine))
        figures["first question on nine hours, new command (s)"] = long.seconds
        figures["peak memory on one hour (MiB)"], figures["peak memory on nine hours (MiB)"] = short.peak_mib, long.peak_mib
        figures["nine hours to one, peak memory"] = long.peak_mib / short.peak_mib
    return figures
