"""Runs an experiment that the papers leave open, and writes its table and picture: `python -m launch.experiment hierarchies`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.cli import Parser, counting_bar, run
from launch.ground import DEFAULT_CHECKPOINT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.experiment",
        description="Measures every cell of an experiment that is not there yet, and writes OUT/NAME.md and OUT/NAME.png. --list tells what there is.",
        epilog="Stopped and started again, it goes on with the film, or the training step, it was at. Another checkpoint or setting measures its cells anew.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which experiment")
    parser.add_argument("--list", action="store_true", help="names of the experiments, with what each asks")
    parser.add_argument("--checkpoint", type=Path, default=Path(DEFAULT_CHECKPOINT), metavar="DIR", help="default: the shipped tiny model")
    kept = "answers, trainings and finished cells (default outputs/experiments)"
    parser.add_argument("--workdir", type=Path, default=Path("outputs/experiments"), metavar="DIR", help=kept)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="rendered and encoded films (default: the user's cache folder)")
    parser.add_argument("--out", type=Path, default=Path("docs/experiments"), metavar="DIR", help="where page and picture go (default docs/experiments)")
    parser.add_argument("--videos", type=int, metavar="N", help="test films of a cell (default 20; of experiments that train 8)")
    parser.add_argument("--duration", type=float, default=3600.0, metavar="SECONDS", help="of a film (default an hour); length and needle count in these")
    parser.add_argument("--seeds", default="0,1,2", metavar="A,B", help="of experiments that train: a training for each (default 0,1,2)")
    parser.add_argument("--steps", type=float, default=1.0, metavar="SHARE", help="of experiments that train: share of their steps, to try one (default 1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from revision_jax.errors import UserError
    from revision_jax.experiments.all import EXPERIMENTS

    if options.list:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:<14}{experiment.asks}{' (trains)' if experiment.trains else ''}")
        return 0
    if options.name not in EXPERIMENTS:
        told = "NAME: which experiment" if options.name is None else f"{options.name}: no such experiment"
        raise UserError(f"{told}; there are {', '.join(EXPERIMENTS)} (--list tells more)")
    seeds = _check(options)
    experiment = EXPERIMENTS[options.name]
    from revision_jax.experiments.bench import Bench
    from revision_jax.experiments.run import measure, publish

    told = command(options)
    # A training started here is to hear of it, and to save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _progress(experiment.name) as (of_cells, of_films):
        bench = Bench(
            options.checkpoint, options.workdir, videos=options.videos or experiment.videos, duration_s=options.duration, seeds=seeds, steps=options.steps,
            cache=options.cache, progress=of_films,
        )  # fmt: skip
        done = measure(experiment, bench, told, of_cells)
    written = publish(experiment, done, options.out, told)
    print(written.read_text(encoding="utf-8"))
    print(f"{written}: {len(done)} cells, kept in {options.workdir / experiment.name}")
    return 0


def _check(options: argparse.Namespace) -> list[int]:
    """The seeds. Raises UserError that names the option."""
    from revision_jax.errors import UserError

    if options.videos is not None and options.videos < 1:
        raise UserError(f"--videos: must be at least 1, is {options.videos}")
    if not 60 <= options.duration <= 4800:  # nine of them are the longest film, and twelve hours the longest that is rendered
        raise UserError(f"--duration: must lie in 60..4800 seconds, is {options.duration:g}")
    if not 0 < options.steps <= 1:
        raise UserError(f"--steps: must lie in (0, 1], is {options.steps:g}")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds: must be whole numbers with commas between them, such as 0,1,2; are {options.seeds!r}") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds: must differ and not be negative, are {options.seeds}")
    return seeds


def command(options: argparse.Namespace) -> str:
    """What measures the same: the command without the folders of this machine."""
    parts = ["python -m launch.experiment", options.name]
    defaults = parse([options.name])
    parts += [f"--{name} {getattr(options, name):g}" for name in ("videos", "duration", "steps") if getattr(options, name) != getattr(defaults, name)]
    return " ".join([*parts, *([f"--seeds {options.seeds}"] if options.seeds != defaults.seeds else [])])


@contextmanager
def _progress(name: str) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[int, int, str], None]]]:
    """Two reports, of cells and of a cell's films: bars on a terminal; elsewhere a line for each cell, with the time left."""
    with counting_bar("done, left") as bar:
        if bar is None:
            began = time.monotonic()

            def line(done: int, of: int, what: str) -> None:
                left = f", about {(time.monotonic() - began) / done * (of - done) / 60:.0f} min left" if 0 < done < of else ""
                print(f"{name}: {done} of {of} cells{left}{f'; now {what}' if what else ''}", file=sys.stderr, flush=True)

            yield line, lambda done, of, what: None
            return
        cells, films = bar.add_task(name, total=None), bar.add_task("", total=None)
        yield (
            lambda done, of, what: bar.update(cells, completed=done, total=of, description=f"{name}: {what}"),
            lambda done, of, what: bar.update(films, completed=done, total=of, description=what),
        )


if __name__ == "__main__":
    run(main)
