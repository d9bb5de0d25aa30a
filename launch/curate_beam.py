"""`launch.curate` with its blocks on Apache Beam's workers: `python -m launch.curate_beam IMAGES --checkpoint DIR --out OUT ... -- --runner=FlinkRunner ...`.

What follows `--` are Beam's own options; without them the pipelines run in this process. Images, models and OUT must lie on a file system that all workers see,
under the same paths. What the images decide together (near-duplicates, categories) is worked out here, between two pipelines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from launch.cli import Parser, run
from launch.curate import add_arguments, read_recipe, tell
from launch.extract_beam import beam_options, split


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and Beam's."""
    ours, beams = split(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(
        prog="python -m launch.curate_beam", usage="%(prog)s IMAGES --checkpoint DIR --out OUT [as launch.curate] [field=value ...] [-- BEAM OPTIONS]",
        description="Cleans images with captions, as launch.curate does, on Beam's workers.",
    )
    add_arguments(parser)
    return parser.parse_intermixed_args(ours), beams


def main(arguments: Sequence[str] | None = None) -> int:
    options, flags = parse(arguments)
    recipe = read_recipe(options)
    pipeline_options = beam_options(flags)
    from revision_jax.curation import beam, pipeline
    from revision_jax.curation.curator import Curator
    from revision_jax.curation.duplicates import import_faiss
    from revision_jax.curation.items import read_items

    import_faiss()
    items = read_items(options.images, options.captions)
    recipe = replace(recipe, **{name: str(Path(getattr(recipe, name)).resolve()) for name in ("images", "checkpoint", "out")})
    curator = Curator(recipe)
    measure = partial(beam.measure, recipe, pipeline_options, pipeline.captioned(curator, items))
    return tell(pipeline.run(curator, items, measure=measure, recaption=partial(beam.recaption, recipe, pipeline_options)))


if __name__ == "__main__":
    run(main)
