"""Jobs over the workers of an Apache Beam pipeline, each worker with one copy of what does them. Needs the extra `beam`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared


class RunJobs(beam.PTransform):
    """jobs | RunJobs(load, run): `run(worker, job)` of each, where `worker = load()` is made once in a process and shared by its threads.

    load and run are pickled by name. A bundle that a runner does twice, or in two places at once, has to be harmless.
    """

    def __init__(self, load: Callable[[], Any], run: Callable[[Any, Any], Any]):
        super().__init__()
        self._load, self._run = load, run

    def expand(self, jobs: beam.PCollection) -> beam.PCollection:
        # Reshuffled, so that a runner may spread the jobs; or it would do all of them where it made the list.
        return jobs | "spread" >> beam.Reshuffle() | "run" >> beam.ParDo(_Run(self._load, self._run))


class _Run(beam.DoFn):
    def __init__(self, load: Callable[[], Any], run: Callable[[Any, Any], Any]):
        self._load, self._run, self._shared = load, run, Shared()

    def setup(self) -> None:
        self._worker = self._shared.acquire(self._load)

    def process(self, job: Any) -> Iterator[Any]:
        yield self._run(self._worker, job)
