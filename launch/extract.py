"""Encodes videos into feature stores: `python -m launch.extract films/ --checkpoint DIR --out STORE`.

Can be killed at any time and started again: what is finished stays, and a video that was being encoded goes on where it was. Several processes, on one host
or on many, may be given the same videos and the same STORE: each with its share (`--shard 0/4` ... `3/4`), or all with everything, for no two of them work
on one video at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launch.cli import Parser, run, share

if TYPE_CHECKING:
    from revision_jax.extraction.jobs import Job, Outcome


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.extract", description="Encodes videos into feature stores: STORE/NAME.features for each.",
        epilog="Exit status: 0 all done, 1 some videos could not be read (they are listed), 2 bad input, 130 stopped by Ctrl-C.",
    )
    add_arguments(parser)
    parser.add_argument("--shard", metavar="I/N", default="0/1", help="only the I-th (from 0) of N shares of the videos, for one of N processes")
    return parser.parse_args(arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this main and `launch.extract_beam` have in common."""
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video, or a folder in which all videos are meant, sub-folders included")
    parser.add_argument("--checkpoint", metavar="DIR", required=True, help="a folder with config.json and model.safetensors; its encoder looks at the frames")
    parser.add_argument("--out", metavar="STORE", required=True, help="folder of the stores; made where it does not exist")
    parser.add_argument("--rate", type=float, metavar="FPS", help="frames a second (default: the checkpoint's, which reads no other)")
    parser.add_argument("--patches", action="store_true", help="also STORE/NAME.patches, for the patch level: at its rate, with its encoder")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    check_rate(options.rate)
    from revision_jax.extraction.jobs import FeatureExtractor, find_jobs, shard

    jobs = find_jobs(options.videos)
    mine = shard(jobs, *share(options.shard))
    extractor = FeatureExtractor(options.checkpoint, options.out, options.rate, options.patches)
    outcomes: list[Outcome] = []
    with _progress(mine) as watch:
        for job in mine:
            outcomes.append(extractor.run(job, watch(job)))
            _tell(outcomes[-1], len(outcomes), len(mine))
        # Those that another process had: it may have been killed meanwhile.
        for number, outcome in enumerate(outcomes):
            if outcome.what == "left":
                outcomes[number] = extractor.run(outcome.job, watch(outcome.job))
                _tell(outcomes[number], number + 1, len(mine))
    return report(outcomes)


def check_rate(rate: float | None) -> None:
    """Raises UserError for what is no rate."""
    from revision_jax.errors import UserError

    if rate is not None and not 0 < rate <= 1000:
        raise UserError(f"--rate: must be above 0, at most 1000 frames a second, is {rate:g}")


def report(outcomes: Sequence[Outcome]) -> int:
    """Says what became of all videos, those that could not be read last and by name; returns the exit status."""
    counts = Counter(outcome.what for outcome in outcomes)
    frames = sum(outcome.frames for outcome in outcomes if outcome.what == "written")
    left = f", {counts['left']} left to another process" if counts["left"] else ""
    print(f"{counts['written']} videos encoded ({frames} frames), {counts['kept']} were there{left}, {counts['failed']} failed")
    for outcome in outcomes:
        for warning in outcome.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.what == "failed":
            print(f"failed: {' '.join(outcome.reason.split())}", file=sys.stderr)
    return 1 if counts["failed"] else 0


def _tell(outcome: Outcome, number: int, count: int) -> None:
    """A line a video where nobody watches a bar."""
    if not sys.stderr.isatty():
        said = outcome.reason if outcome.what == "failed" else f"{outcome.frames} frames" if outcome.frames else ""
        print(f"{number}/{count} {outcome.job.video_id}: {outcome.what}{' ' + said if said else ''}, {outcome.seconds:.1f} s", flush=True)


@contextmanager
def _progress(jobs: Sequence[Job]) -> Iterator[Callable[[Job], Callable[[float, float], None] | None]]:
    """A bar with the time left, on a terminal only; gives a function that makes a job's progress(done, of), or None. Videos weigh what their files do."""
    if not sys.stderr.isatty():
        yield lambda job: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TextColumn("left"), TimeRemainingColumn()
    before = dict(zip((job.video_id for job in jobs), _running_sums(job.size for job in jobs), strict=True))
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as progress:
        task = progress.add_task("encoding", total=sum(job.size for job in jobs))

        def watch(job: Job) -> Callable[[float, float], None]:
            progress.update(task, description=job.video_id, completed=before[job.video_id])
            return lambda done, of: progress.update(task, completed=before[job.video_id] + job.size * min(1.0, done / of))

        yield watch
        progress.update(task, description="encoded", completed=sum(job.size for job in jobs))


def _running_sums(sizes: Iterator[int]) -> Iterator[int]:
    total = 0
    for size in sizes:
        yield total
        total += size


if __name__ == "__main__":
    run(main)
