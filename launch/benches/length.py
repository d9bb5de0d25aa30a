"""`launch.bench length`: what a question costs by the length of the video, from a minute to nine hours, with and without the checkpoint's nested levels.

The features are at hand and random, as no hours have to be rendered for what is measured: how many windows are looked at and what the language model reads
depends on length and levels, not on what is seen. Windows that random features make stand out lie all over the film, which costs most at the frame level. The
patch level, which reads the video itself, is left out; what it does is the same at every length.

For each length: seconds of a search, medians of five by turns; seconds of it in the language model's programs; tokens that it reads (`tokens.Counted`); and,
of one more search, the most device memory: all arrays that live when a program is called, its results and temporaries included. A picture of the
curves goes to the working directory, `length.png`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from launch.benches import curves
from launch.benches.commands import QUERIES, by_turns
from launch.benches.tokens import Counted
from revision_jax.config import ExperimentConfig
from revision_jax.grounding.source import ArraySource

LENGTHS = {"1 min": 60, "5 min": 300, "15 min": 900, "1 h": 3600, "3 h": 10800, "9 h": 32400}  # seconds
LAST, BEFORE = "9 h", "1 h"


class Watched(Counted):
    """Programs that also tell the seconds of the language model's programs, and the most memory, where `watching`."""

    seconds, most, watching = 0.0, 0, False

    def run_each(self, kind: str, name: str, calls: Sequence[tuple]) -> list:
        import jax

        began = time.perf_counter()
        made = super().run_each(kind, name, calls)
        if "answer" in kind or "prefix" in kind:
            jax.block_until_ready(made)
            self.seconds += time.perf_counter() - began
        if self.watching:
            self.most = max(self.most, self._held(kind, name, calls))
        return made

    def _held(self, kind: str, name: str, calls: Sequence[tuple]) -> int:
        import jax

        from revision_jax.grounding.level_functions import level_state

        compiled = self.stored(kind, name).prepare(level_state(self.state, name), *calls[0])
        host = sum(x.nbytes for x in jax.tree.leaves(calls) if isinstance(x, np.ndarray))  # moved to the device for the call
        held = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}  # some have two names
        return sum(held.values()) + host + len(calls) * compiled.memory_analysis().temp_size_in_bytes  # as if all of them ran side by side


def length(options: argparse.Namespace) -> dict[str, float | int]:
    """The figures of every length, and those of nine hours to those of one."""
    from revision_jax.grounding.grounder import Grounder

    grounder = Grounder.from_pretrained(options.checkpoint, cache_dir=options.workdir / "cache", ask=False)
    ways = {"as configured": grounder.config}
    if any(level.kind == "nested" and level.searched for level in grounder.config.grounding.levels):
        ways["without nested levels"] = without(grounder.config, "nested")
    ways = {way: Watched(without(config, "patch"), grounder.programs.state, grounder.programs.tokenizer, grounder.programs.text_tokenizer)
            for way, config in ways.items()}  # fmt: skip
    films = {name: film(grounder.config, grounder.programs, seconds) for name, seconds in LENGTHS.items()}
    rows: dict[tuple[str, str], dict[str, float]] = {}
    spent = by_turns({(way, name): searching(programs, one) for way, programs in ways.items() for name, one in films.items()})
    for (way, name), seconds in spent.items():
        rows[way, name] = {"seconds": seconds, **watched(ways[way], films[name])}
    told = {"seconds": "s", "language model": "s of it in the language model", "tokens": "tokens of the language model", "memory": "MB of device memory"}
    figures = {
        f"{way}: {LAST} to {BEFORE}, {told[what]}": rows[way, LAST][what] / rows[way, BEFORE][what] for way in ways for what in told
    } | {f"{way}: {name}, {told[what]}": row[what] for (way, name), row in rows.items() for what in told}  # fmt: skip
    panels = {told[what]: {way: [rows[way, name][what] for name in films] for way in ways} for what in told}
    picture = curves.draw(options.workdir / "length.png", "One question by the video's length", list(LENGTHS.values()), list(LENGTHS), panels)
    return {**figures, "picture": str(picture)}


def without(config: ExperimentConfig, kind: str) -> ExperimentConfig:
    from revision_jax.evaluation.baselines import leave_out

    return leave_out(config, [level.name for level in config.grounding.levels if level.kind == kind])


def film(config: ExperimentConfig, programs: Counted, seconds: float) -> ArraySource:
    """Random features of a film, as a store keeps them."""
    from revision_jax.grounding.program_shapes import token_counts

    rng, count, width = np.random.default_rng(0), round(seconds * config.grounding.rate), config.vision.output
    shapes = {"frame": (count, width), "tokens": (count, token_counts(config.vision)[0], width)}
    arrays = {name: rng.standard_normal(shapes[name], np.float32).astype(np.float16) for name in programs.names}
    return ArraySource(arrays, config.grounding.rate, float(seconds), key=f"{seconds}")


def searching(programs: Watched, one: ArraySource) -> Callable[[], Callable[[], Any]]:
    """What makes ready a search from nothing."""
    from revision_jax.grounding.search import Searcher

    def ready() -> Callable[[], Any]:
        searcher = Searcher(programs.config, programs)
        return lambda: searcher.search(one, QUERIES[:1])

    return ready


def watched(programs: Watched, one: ArraySource) -> dict[str, float]:
    """Seconds in the language model, tokens, and MB of one search each."""
    programs.seconds, programs.read = 0.0, 0
    searching(programs, one)()()
    found = {"language model": programs.seconds, "tokens": programs.read}
    programs.watching, programs.most = True, 0
    searching(programs, one)()()
    programs.watching = False
    return {**found, "memory": programs.most / 1e6}
