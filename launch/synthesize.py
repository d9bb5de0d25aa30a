"""Renders a video of the synthetic world: `python -m launch.synthesize --seed 7 --duration 3600 --out DIR`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from launch.cli import Parser, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.synthesize", description="Writes DIR/video.mp4 and DIR/annotations.json.")
    parser.add_argument("--seed", type=_whole, help="0..999999: a video of your own, the same bytes every time (default 0)")
    parser.add_argument("--split", help="instead of a seed: train, validation, test, composition or length")
    parser.add_argument("--index", type=_whole, help="with --split: the number of the video in it (default 0)")
    parser.add_argument("--duration", type=_number, metavar="SECONDS", help="60 s to 12 h (default 3600; of the length split 10800)")
    parser.add_argument("--out", required=True, metavar="DIR", help="made where it does not exist; files of the same name are replaced")
    parser.add_argument("--questions", type=_whole, metavar="N", help="default 24 an hour, at least 6")
    parser.add_argument("--fps", type=_number, default=5, help="frames per second, a whole number (default 5)")
    parser.add_argument("--size", type=_whole, default=160, metavar="PIXELS", help="height and width, a multiple of 16 in 160..640 (default 160)")
    return parser.parse_args(arguments)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.data.synthetic.questions import default_count
    from revision_jax.data.synthetic.script import make_script
    from revision_jax.data.synthetic.world import SPLIT_DURATION_S, USER_SEEDS, split_seed
    from revision_jax.data.synthetic.write import write
    from revision_jax.errors import UserError

    if options.split is None:
        if options.index is not None:
            raise UserError("--index: needs --split")
        seed = 0 if options.seed is None else options.seed
        if not 0 <= seed < USER_SEEDS:
            raise UserError(f"--seed: must lie in 0..{USER_SEEDS - 1}, is {seed}; the videos of a split are asked for with --split and --index")
    elif options.seed is not None:
        raise UserError("--seed: give either --seed or --split, not both")
    else:
        seed = split_seed(options.split, options.index or 0)
    if options.questions is not None and options.questions < 0:
        raise UserError(f"--questions: must not be negative, is {options.questions}")
    duration = SPLIT_DURATION_S.get(options.split, 3600.0) if options.duration is None else options.duration
    script = make_script(seed, duration, options.fps)
    began = time.perf_counter()
    with _progress(script.frames) as progress:
        path = write(script, options.out, options.questions, options.size, progress)
    count = default_count(script.duration_s) if options.questions is None else options.questions
    print(f"{path}: {script.duration_s:.0f} s of video, {len(script.events)} events, up to {count} questions; took {time.perf_counter() - began:.1f} s")


def _progress(frames: int) -> AbstractContextManager:
    """A bar with the time left, on a terminal only; gives a function of the number of frames done, or None."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        def __enter__(self):
            super().__enter__()
            task = self.add_task("rendering", total=frames)
            return lambda done: self.update(task, completed=done)

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames, left"), TimeRemainingColumn()
    return Bar(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    run(main)
