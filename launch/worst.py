"""Shows what a run answered worst: `python -m launch.worst results.json --out DIR` writes DIR/README.md and a picture for each question."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, counting_bar, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.worst",
        description="Shows the worst answers of an evaluation: why each went wrong, where it lies in the video, and frames of it beside the truth.",
        epilog="Reads the report alone and the videos, no model. Files of the same name are replaced.",
    )
    parser.add_argument("report", metavar="FILE", help="the --json file of launch.evaluate")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets README.md and 01.png, 02.png ...")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="the N worst (default 20)")
    where = "where the videos are, as launch.evaluate had them: its --data, of a listed dataset its --videos (default: the cache folder)"
    parser.add_argument("--videos", metavar="DIR", help=where)
    parser.add_argument("--no-frames", action="store_true", help="pictures of the timeline alone, for answers from features: MAD has no videos")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.errors import UserError
    from revision_jax.evaluation import datasets, report, worst
    from revision_jax.files import write_bytes, write_text
    from revision_jax.ui import mistake
    from revision_jax.ui.worst import page

    if options.count < 1:
        raise UserError(f"--count: must be at least 1, is {options.count}")
    if options.no_frames and options.videos:
        raise UserError("--no-frames: looks at no video; leave out --videos")
    made = report.load(options.report)
    outcomes, about = report.outcomes_of(made), made.get("run") or {}
    if not outcomes:
        raise UserError(f"{options.report}: holds no answers; give the --json file of launch.evaluate")
    shown, out = worst.wrong(outcomes)[: options.count], Path(options.out)
    films = {} if options.no_frames else datasets.films(about, [one.outcome for one in shown], _place(options, about))
    names = [f"{number:02d}.png" for number in range(1, len(shown) + 1)]
    with counting_bar("videos, left") as bar:
        by_video: dict[str, list[int]] = {}
        for number, one in enumerate(shown):
            by_video.setdefault(one.outcome.video, []).append(number)
        for video, numbers in bar.track(by_video.items(), description="drawing") if bar else by_video.items():
            frames = mistake.read_frames(films[video], [shown[number] for number in numbers]) if films else None
            for number in numbers:
                write_bytes(out / names[number], mistake.png(mistake.draw(shown[number], frames)))
    write_text(out / "README.md", page(about, outcomes, shown, names))
    print(f"{out / 'README.md'}: the {len(shown)} worst of {len(outcomes)} answers")


def _place(options: argparse.Namespace, about: dict) -> Path:
    from revision_jax.errors import UserError

    if options.videos:
        return Path(options.videos)
    if about.get("dataset") != "synthetic":
        raise UserError(f"--videos: a folder must be given for answers about {about.get('dataset')}, or --no-frames")
    from revision_jax.grounding.grounder import default_cache

    return default_cache() / "data"


if __name__ == "__main__":
    run(main)
