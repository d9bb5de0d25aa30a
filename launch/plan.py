"""Plans a config for hardware that is not here: `python -m launch.plan revisionllm_7b_mad --topology v5e:8x8`.

Every stage's train step and everything that answering compiles is compiled ahead of time for the slice, under each sharding strategy; nothing runs, no
accelerator is needed. One table says what a chip must hold, what it computes and sends, how long that takes at best, and which strategy is quickest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import Parser, run
from launch.train import load_config

if TYPE_CHECKING:
    from revision_jax.planning.report import Report

ALL = ("dp", "fsdp", "fsdp_tensor", "tensor", "fsdp_context", "fsdp_context_tensor")  # what the help names; `sharding/strategies.py` has them


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.plan",
        description="Compiles the programs of a config ahead of time for a topology and tells what they cost, strategy by strategy. Needs no accelerator.",
        epilog='TPUs need their compiler: pip install "jax[tpu]". A second run of the same plan reads the first one\'s reports.',
    )
    parser.add_argument("config", metavar="CONFIG", help="a preset of configs/ (revisionllm_7b_mad) or a Python file with get_config()")
    named = "v4:2x2x2, v5e:8x8, v5p:4x4x8, v6e:8x8 and their like, 2*v5e:16x16 for two slices, cpu:8, gpu:4"
    parser.add_argument("--topology", required=True, metavar="NAME", help=named)
    parser.add_argument("--strategy", nargs="+", default=["all"], metavar="NAME", help=f"all (default), or some of {', '.join(ALL)} and those that CONFIG adds")
    parser.add_argument("--stage", metavar="NAME", help="the train step of this stage alone (default: all stages, and answering)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's own; without it the prompt's length is estimated by words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the reports as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="memory and time of each strategy as a picture")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="compilers side by side; each takes one to two GiB of memory for a 7B (default 2)")
    parser.add_argument(
        "--optimization", choices=("O0", "O1", "O2", "default"), default="O0",
        help="the compiler's level (JAX_OPTIMIZATION_LEVEL): O0 (default) gives the program of O1 in less time; 'default' is what runs where none is set",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where reports are kept (default: the user's cache folder); 'none' keeps none")
    parser.add_argument("overrides", nargs="*", metavar="field.name=value", help="such as train.stages.1a.batch=512 or decoder.remat=dots")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from revision_jax.planning import topologies

    topologies.prepare(options.topology)  # before anything imports jax
    from revision_jax.config import override

    config = override(load_config(options.config), options.overrides)

    import jax

    if options.optimization != "default":
        jax.config.update("jax_optimization_level", options.optimization)
    from revision_jax.data.tokenizer import Tokenizer
    from revision_jax.files import write_text
    from revision_jax.grounding.grounder import default_cache
    from revision_jax.planning.planner import Planner
    from revision_jax.planning.programs import all_programs
    from revision_jax.planning.report import table
    from revision_jax.planning.vocabulary import stand_in
    from revision_jax.sharding.strategies import strategies, strategy_named

    topology = topologies.load(options.topology)
    chosen = list(strategies().values()) if options.strategy == ["all"] else [strategy_named(name) for name in options.strategy]
    tokenizer = stand_in(config) if options.tokenizer is None else Tokenizer.load(options.tokenizer)
    programs = all_programs(config, tokenizer, options.stage)
    if not programs:
        from revision_jax.errors import UserError

        raise UserError(f"{options.config}: has no stages, and no text tower to answer with: there is nothing to plan")
    cache = default_cache() / "plans" if options.cache is None else None if str(options.cache) == "none" else options.cache
    with _Bar(len(programs) * len(chosen)) as bar:
        reports = Planner(topology, cache).plan(programs, chosen, options.jobs, bar.advance)

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(table(f"{config.name} on {options.topology}, {len(topology.devices)} chips", reports, topology.chip))
    for line in notes(reports):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json is not None:
        told = {"config": config.name, "topology": options.topology, "optimization": options.optimization, "reports": [report.to_dict() for report in reports]}
        write_text(options.json, json.dumps(told, indent=1) + "\n")
    if options.plot is not None:
        from revision_jax.planning.plot import draw

        draw(options.plot, f"{config.name} on {options.topology}", reports)
    return 0


def notes(reports: Sequence[Report]) -> list[str]:
    """What is to be done: how to run with the best strategy, and what would make the others fit."""
    from revision_jax.planning.report import by_program

    lines = []
    for program, group in by_program(reports).items():
        best = group[0]
        if best.kind == "train" and best.fits is not False and not best.problem:
            mesh = " ".join(f"mesh.{axis}={size}" for axis, size in best.mesh.items())
            lines.append(f"{program}: python -m launch.train CONFIG {mesh} mesh.rules={best.strategy}")
        lines += [f"{program}, {report.strategy}: {report.advice}" for report in group if report.advice]
    return lines


class _Bar:
    """A live bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("compiling", total=total)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, report: Report) -> None:
        self.bar.update(self.task, advance=1, description=f"{report.program}, {report.strategy}")


if __name__ == "__main__":
    run(main)
