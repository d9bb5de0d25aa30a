"""Builds the field's datasets from their owners' files: `python -m launch.datasets build NAME --manual DIR --out DIR`; `list` says what there is.

`imitate mad --out DIR` makes files as MAD's owners give them out, of random features with planted events: to try the whole path before the agreement is signed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.cli import Parser, counting_bar, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.datasets", description="Annotations of the field's datasets as ArrayRecord files.", epilog="Exit status: 0 built, 2 bad input."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | build | imitate")
    commands.add_parser("list", help="the datasets, the files they want, where these are asked for, and the presets of rules")
    build = commands.add_parser("build", help="build one; what was built before from the same files by the same rules is kept")
    build.add_argument("name", metavar="NAME", help="one of the list, or NAME/PRESET (msrvtt/7k)")
    build.add_argument("--manual", required=True, metavar="DIR", help="the folder with the owners' files (or their archives)")
    build.add_argument("--out", required=True, metavar="DIR", help="the dataset becomes DIR/NAME/PRESET/VERSION")
    build.add_argument("--rule", action="append", default=[], metavar="FIELD=VALUE", help="change a rule, such as on_error=skip or splits=train,validation")
    imitate = commands.add_parser("imitate", help="files in the owners' layouts, with random features in which the described events are planted")
    imitate.add_argument("name", metavar="NAME", choices=("mad",), help="mad")
    imitate.add_argument("--out", required=True, metavar="DIR", help="an empty or a new folder")
    imitate.add_argument("--films", type=int, default=3, metavar="N", help="one of them is validation, one is test (default 3)")
    imitate.add_argument("--minutes", type=float, default=40.0, metavar="M", help="of each film (default 40)")
    imitate.add_argument("--questions", type=int, default=300, metavar="N", help="in all (default 300)")
    imitate.add_argument("--width", type=int, default=768, metavar="D", help="numbers a frame or token (default 768)")
    imitate.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed, the same set (default 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from revision_jax.data.datasets import registry

    if options.command == "list":
        for name in registry.NAMES:
            builder = registry.builder(name)
            print(f"{name}: {' '.join((builder.__doc__ or '').split())}")
            print(f"  files: {'; '.join(map(str, builder.FILES)) or 'see docs/data.md'}\n  from: {builder.ASKED}\n  presets: {', '.join(builder.RULES)}")
        return
    if options.command == "imitate":
        _imitate(options)
        return
    from revision_jax.data.datasets.build import build

    name, _, preset = options.name.partition("/")
    built = build(name, options.manual, options.out, preset, options.rule)
    print(built.path)
    for split, counts in built.counts.items():
        print(f"  {split}: {', '.join(f'{number} {what}' for what, number in counts.items())}")


def _imitate(options: argparse.Namespace) -> None:
    from revision_jax.data.synthetic import planted

    with counting_bar("films, left") as bar:
        task = None if bar is None else bar.add_task("writing", total=options.films)
        progress = None if bar is None else lambda movie, done, of: bar.update(task, description=movie, completed=done)
        movies = planted.write(options.out, options.films, options.minutes, options.questions, options.seed, options.width, progress)
    print(options.out)
    for split in ("train", "val", "test"):
        own = [movie for movie in movies if movie.split == split]
        print(f"  {split}: {len(own)} films, {sum(len(movie.events) for movie in own)} questions")


if __name__ == "__main__":
    run(main)
