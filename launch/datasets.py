"""Builds the field's datasets from their owners' files: `python -m launch.datasets build NAME --manual DIR --out DIR`; `list` says what there is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.cli import Parser, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.datasets", description="Annotations of the field's datasets as ArrayRecord files.", epilog="Exit status: 0 built, 2 bad input."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | build")
    commands.add_parser("list", help="the datasets, the files they want, where these are asked for, and the presets of rules")
    build = commands.add_parser("build", help="build one; what was built before from the same files by the same rules is kept")
    build.add_argument("name", metavar="NAME", help="one of the list, or NAME/PRESET (msrvtt/7k)")
    build.add_argument("--manual", required=True, metavar="DIR", help="the folder with the owners' files (or their archives)")
    build.add_argument("--out", required=True, metavar="DIR", help="the dataset becomes DIR/NAME/PRESET/VERSION")
    build.add_argument("--rule", action="append", default=[], metavar="FIELD=VALUE", help="change a rule, such as on_error=skip or splits=train,validation")
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
    from revision_jax.data.datasets.build import build

    name, _, preset = options.name.partition("/")
    built = build(name, options.manual, options.out, preset, options.rule)
    print(built.path)
    for split, counts in built.counts.items():
        print(f"  {split}: {', '.join(f'{number} {what}' for what, number in counts.items())}")


if __name__ == "__main__":
    run(main)
