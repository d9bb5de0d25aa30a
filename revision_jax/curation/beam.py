"""A recipe's blocks over Apache Beam's workers, for more images than one machine can look at. Needs the extra `beam`.

Workers see images, models and OUT under the same paths, and write into the same journals as one machine does: what they return is only what went wrong. What
all images decide together stays with whoever runs the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from revision_jax.beam_jobs import RunJobs
from revision_jax.curation.curator import Curator, Recipe
from revision_jax.curation.items import Block
from revision_jax.errors import UserError

ERRORS = "errors"  # .txt, in OUT/work


def measure(recipe: Recipe, options: PipelineOptions, captioned: bool, blocks: Sequence[Block]) -> None:
    """`Curator.measure` of all blocks. Raises UserError with what a worker said."""
    _run(recipe, options, partial(_measure, captioned), blocks)


def recaption(recipe: Recipe, options: PipelineOptions, parts: Sequence[tuple[Block, frozenset[str]]]) -> None:
    """`Curator.recaption` of (block, ids). Raises UserError with what a worker said."""
    _run(recipe, options, _recaption, parts)


def _run(recipe: Recipe, options: PipelineOptions, run: Callable[[Curator, Any], str], jobs: Sequence[Any]) -> None:
    place = recipe.work / ERRORS
    with beam.Pipeline(options=options) as pipeline:
        said = pipeline | "blocks" >> beam.Create(list(jobs)) | "curate" >> RunJobs(partial(Curator, recipe), run) | "said" >> beam.Filter(bool)
        said | "write" >> beam.io.WriteToText(str(place), file_name_suffix=".txt", num_shards=1, shard_name_template="")
    path = Path(f"{place}.txt")
    errors = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    if errors:
        raise UserError(errors[0])


def _measure(captioned: bool, curator: Curator, block: Block) -> str:
    return _said(block, lambda: curator.measure(block, captioned))


def _recaption(curator: Curator, part: tuple[Block, frozenset[str]]) -> str:
    return _said(part[0], lambda: curator.recaption(*part))


def _said(block: Block, work: Callable[[], Any]) -> str:
    """"", or why the work cannot be done: told, not raised, for a runner would only try it again."""
    try:
        work()
    except UserError as error:
        return " ".join(str(error).split())
    Metrics.counter("curation", "images").inc(len(block.items))
    return ""
