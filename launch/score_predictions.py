"""Scores predictions that lie in a file, whoever made them: `python -m launch.score_predictions FILE --dataset qvhighlights --annotations FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m launch.score_predictions",
        description="Scores predictions by the metrics of launch.evaluate. The forms of QVHighlights, MAD and ExtremeWhenBench are told apart.",
    )
    parser.add_argument("predictions", metavar="FILE", help="what was predicted; launch.evaluate --submission writes such a file")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="whose annotations: one that launch.datasets lists, or NAME/CONFIG")
    where = "the owners' file of the split, the folder with the owners' files, or where the dataset was built"
    parser.add_argument("--annotations", required=True, metavar="PATH", help=where)
    parser.add_argument("--split", default="validation", metavar="NAME", help="train, validation (default) or test")
    parser.add_argument("--threshold", type=float, metavar="SCORE", help="the least score of a span that counts as an answer (default: all do)")
    parser.add_argument("--json", metavar="FILE", help="the report with every answer")
    parser.add_argument("--compare", metavar="FILE", help="the report of another run: paired bootstrap of every figure")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from rich.console import Console

    from revision_jax.data.datasets import registry
    from revision_jax.errors import UserError
    from revision_jax.evaluation import datasets, report, submissions

    if options.dataset.partition("/")[0] not in registry.GROUNDING:
        raise UserError(f"--dataset: {options.dataset!r} is not one of {', '.join(registry.GROUNDING)}")
    place = Path(options.annotations)
    if not place.exists():
        raise UserError(f"--annotations: {place}: no such file or folder")
    other = report.load(options.compare) if options.compare else None
    predictions = submissions.read(options.predictions)
    outcomes = submissions.outcomes(list(datasets.annotated(options.dataset, place, options.split)), predictions, options.threshold)
    name = Path(options.predictions).stem
    result = report.build(outcomes, {"method": name, "dataset": options.dataset, "split": options.split, "threshold": options.threshold})
    if options.json:
        report.save(options.json, result)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(report.table(result))
    if len(predictions) < len(outcomes):
        console.print(f"{len(outcomes) - len(predictions)} of {len(outcomes)} questions have no prediction: they count as left without an answer")
    if other is not None:
        console.print(report.comparison_table(report.compare(result, other), name, Path(options.compare).stem))


if __name__ == "__main__":
    run(main)
