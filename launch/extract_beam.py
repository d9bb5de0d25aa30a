"""`launch.extract` as an Apache Beam pipeline: `python -m launch.extract_beam films/ --checkpoint DIR --out STORE -- --runner=FlinkRunner ...`.

What follows `--` are Beam's own options: the runner, and where its workers are; without them the pipeline runs in this process. Videos, checkpoint and STORE
must lie on a file system that all workers see, under the same paths. Killed and started again, it goes on where it was, as `launch.extract` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.cli import Parser, run
from launch.extract import add_arguments, check_rate, report

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

REPORT = "extract_report"  # .jsonl, in STORE: what became of each video


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and Beam's."""
    ours, beams = split(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="python -m launch.extract_beam", usage="%(prog)s VIDEO ... --checkpoint DIR --out STORE [--rate FPS] [--patches] [-- BEAM OPTIONS]",
        description=f"Encodes videos into feature stores, as a Beam pipeline; STORE/{REPORT}.jsonl says what became of each.",
        epilog="Exit status: 0 all done, 1 some videos could not be read (they are listed), 2 bad input, 130 stopped by Ctrl-C.",
    )
    add_arguments(parser)
    return parser.parse_args(ours), beams


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and what stands behind it."""
    arguments = list(arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def beam_options(flags: list[str]) -> PipelineOptions:
    """Beam's options of its flags. Raises UserError without Beam, and for flags that it does not take."""
    from revision_jax.errors import UserError

    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError('apache_beam is not installed; pip install "revision-jax[beam]" brings it') from None
    try:
        options = PipelineOptions(flags)
        beam.Pipeline(options=options)
    except (ValueError, SystemExit, ImportError) as error:  # Beam's argparse exits
        raise UserError(f"Beam does not take the options {' '.join(flags)!r} ({error})") from None
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, flags = parse(arguments)
    check_rate(options.rate)
    pipeline_options = beam_options(flags)
    import apache_beam as beam

    from revision_jax.extraction.beam import ExtractFeatures, from_line, to_line
    from revision_jax.extraction.jobs import check_patches, find_jobs

    jobs = find_jobs(options.videos)
    check_patches(options.checkpoint, options.patches)
    checkpoint, out = Path(options.checkpoint).resolve(), Path(options.out).resolve()
    with beam.Pipeline(options=pipeline_options) as pipeline:
        outcomes = pipeline | "videos" >> beam.Create(jobs) | ExtractFeatures(str(checkpoint), str(out), options.rate, options.patches)
        lines = outcomes | "say" >> beam.Map(to_line)
        lines | "write" >> beam.io.WriteToText(str(out / REPORT), file_name_suffix=".jsonl", num_shards=1, shard_name_template="")
    written = (out / f"{REPORT}.jsonl").read_text(encoding="utf-8").splitlines()
    return report(sorted(map(from_line, written), key=lambda outcome: outcome.job.video_id))


if __name__ == "__main__":
    run(main)
