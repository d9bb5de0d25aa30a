"""Makes a fitted checkpoint's confidences honest on saved answers: `python -m launch.calibrate validation.json --checkpoint DIR --kind isotonic`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m launch.calibrate", description="Compares temperature, Platt and isotonic calibration on held-out videos, and stores one.")
    parser.add_argument("report", metavar="FILE", help="the --json file of launch.evaluate of this checkpoint on its validation split")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="whose calibration.json is changed")
    parser.add_argument("--kind", metavar="NAME", help="temperature, platt or isotonic; default: compare them and store nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    from rich.console import Console
    from rich.table import Table

    from revision_jax import checkpoint
    from revision_jax.errors import UserError
    from revision_jax.evaluation import fitting, recalibration, report

    if options.kind is not None and options.kind not in recalibration.KINDS:
        raise UserError(f"--kind: {options.kind!r} is not one of {', '.join(recalibration.KINDS)}")
    made, stored = report.load(options.report), fitting.stored(options.checkpoint)
    about, outcomes = made.get("run", {}), report.outcomes_of(made)
    where = Path(options.checkpoint) / checkpoint.CALIBRATION
    if "bias" not in stored:
        raise UserError(f"{where}: holds no calibrator; fit the checkpoint first (launch.evaluate --fit)")
    settings = about.get("settings") or {}
    if about.get("method") != "model" or settings.get("without") or settings.get("threshold") != stored.get("threshold"):
        raise UserError(f"{options.report}: is no run of the whole model with the calibration of {where}; evaluate the checkpoint again")
    if about.get("split") in ("test", "composition", "length"):
        raise UserError(f"{options.report}: {about['split']} is for the exam; calibrate on validation")
    table = Table("calibration", "ECE", "Brier", "log loss", title=f"{len(outcomes)} answers, each about a video that was not fitted on", title_justify="left")
    for kind, values in recalibration.compare(outcomes).items():
        table.add_row(kind, *(f"{value:.4f}" for value in values.values()))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    if options.kind is not None:
        kept = {name: about.get(name) for name in ("dataset", "split", "videos")}
        new = recalibration.recalibrated(stored, outcomes, options.kind, kept)
        checkpoint.set_calibration(options.checkpoint, new)
        print(f"{where}: {options.kind}, threshold {new['threshold']:.3f}")


if __name__ == "__main__":
    run(main)
