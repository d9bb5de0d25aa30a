"""`jobs.py` as an Apache Beam transform, for more videos than one machine can encode. Needs the extra `beam`.

    jobs (PCollection[Job]) | ExtractFeatures(checkpoint, out)  ->  PCollection[Outcome]

Workers see videos, checkpoint and stores under the same paths. A worker's threads share one copy of the encoder; a bundle that a runner does twice, or in two
places at once, is harmless: a finished store is kept, and one that is being made is claimed.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from revision_jax.beam_jobs import RunJobs
from revision_jax.errors import UserError

if TYPE_CHECKING:
    from revision_jax.extraction.jobs import FeatureExtractor, Job, Outcome


class ExtractFeatures(beam.PTransform):
    """Jobs to what became of them; arguments as of `jobs.FeatureExtractor`."""

    def __init__(self, checkpoint: str, out: str, rate: float | None = None, patches: bool = False):
        super().__init__()
        self._arguments = (checkpoint, out, rate, patches)

    def expand(self, jobs: beam.PCollection) -> beam.PCollection:
        return jobs | "encode" >> RunJobs(partial(_load, *self._arguments), _extract)


def _load(*arguments: Any) -> FeatureExtractor:
    from revision_jax.extraction.jobs import FeatureExtractor  # here, in the worker: whoever builds the pipeline needs no device

    return FeatureExtractor(*arguments)


def _extract(extractor: FeatureExtractor, job: Job) -> Outcome:
    from revision_jax.extraction.jobs import Outcome

    try:
        outcome = extractor.run(job)
    except UserError as error:  # the store cannot be written: told like any other failure, for a runner would only try again, and then drop all the rest
        outcome = Outcome(job, "failed", reason=str(error))
    Metrics.counter("videos", outcome.what).inc()
    Metrics.counter("frames", outcome.what).inc(outcome.frames)
    return outcome


def to_line(outcome: Outcome) -> str:
    """An outcome as a line of JSON."""
    job = outcome.job
    about = {"what": outcome.what, "frames": outcome.frames, "seconds": outcome.seconds, "reason": outcome.reason, "warnings": list(outcome.warnings)}
    return json.dumps({"video_id": job.video_id, "path": str(job.path), "size": job.size, **about})


def from_line(line: str) -> Outcome:
    """The inverse of `to_line`."""
    from pathlib import Path

    from revision_jax.extraction.jobs import Job, Outcome

    values = json.loads(line)
    job = Job(values.pop("video_id"), Path(values.pop("path")), values.pop("size"))
    return Outcome(job, **(values | {"warnings": tuple(values["warnings"])}))
