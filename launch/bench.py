"""Measures: `python -m launch.bench NAME [--json F]`. What each name measures stands in `launch/benches/NAME.py`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, run
from launch.ground import DEFAULT_CHECKPOINT

# Files of `launch/benches/`, each with a function of its name.
NAMES = ("convert", "curate", "data", "decode", "encode", "ground", "length", "startup", "tokens", "train", "video", "wait", "weights")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.bench", description="Measures and prints a table; every figure with what it was measured on.")
    parser.add_argument("name", choices=NAMES, help="what to measure")
    parser.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="DIR", help="default: the shipped tiny model")
    parser.add_argument(
        "--workdir", type=Path, default=Path("outputs/bench"), metavar="DIR", help="rendered videos, kept for the next time (default outputs/bench)"
    )
    parser.add_argument("--config", default="videollama3_2b", metavar="CONFIG", help="convert: the preset whose checkpoint is made (default videollama3_2b)")
    parser.add_argument("--load", action="store_true", help="convert: also load both onto the device, which takes the model's size in memory")
    parser.add_argument("--long", action="store_true", help="wait, data: also nine hours of video, or 20 GB, for memory (minutes more)")
    parser.add_argument("--videos", type=int, default=3, metavar="N", help="weights: how many videos are asked about (default 3)")
    parser.add_argument("--films", type=Path, nargs="*", default=[], metavar="VIDEO", help="encode: further videos to prune, beside the rendered world")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    figures = getattr(importlib.import_module(f"launch.benches.{options.name}"), options.name)(options)
    import jax

    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=f"bench {options.name}", caption=", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if options.json is not None:
        from revision_jax.files import write_text

        write_text(options.json, json.dumps({"bench": options.name, "figures": figures, "machine": machine}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
