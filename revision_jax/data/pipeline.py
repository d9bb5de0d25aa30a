"""Batches of a stage as a pure function of the step, read ahead by Grain and never on the training thread.

Row r of step s is example `s * batch + r` of the stage, and an example is a pure function of its index. So a batch depends on the step
alone: a run starts at any step without replaying or restoring an iterator, whatever the number of threads or worker processes, and the
rows of several processes taken together are the batch of one.

    step 0: examples 0 1 2 3 | step 1: 4 5 6 7      batch 4, one process
    step 0: 0 1 | step 1: 4 5                       the same, process 0 of 2 (rows 0 .. 2)
    step 0: 2 3 | step 1: 6 7                       the same, process 1 of 2 (rows 2 .. 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from revision_jax.config import ConfigError

Example = dict[str, np.ndarray | np.generic]  # arrays, or NumPy scalars
Batch = dict[str, np.ndarray]


@runtime_checkable
class Examples(Protocol):
    """What a stage is trained on. Workers pickle it; `example` must not depend on anything but the index and what was pickled.

    An object with `shapes` (field -> (shape, dtype)) and a method `fill(index, out)` writes an example into its row of a batch, which is zeros at first:
    nothing is copied to put a batch together. One with a method `collate(examples) -> batch` puts a batch together itself, from this process' rows.
    Otherwise `stack` does.
    """

    def example(self, index: int) -> Example: ...


class _Batches:
    """Grain source: item i is this process' rows of batch `start` + i."""

    def __init__(self, examples: Examples, batch: int, rows: tuple[int, int], start: int, steps: int, shared: bool):
        """shared: batches are made in worker processes, and allocated where the training process can read them."""
        self.examples, self.batch, self.rows, self.start, self.steps, self.shared = examples, batch, rows, start, steps, shared

    def __len__(self) -> int:
        return self.steps - self.start

    def __getitem__(self, item: int) -> Batch:
        first = (self.start + int(item)) * self.batch
        indices = range(first + self.rows[0], first + self.rows[1])
        if not hasattr(self.examples, "fill"):
            return getattr(self.examples, "collate", stack)([self.examples.example(index) for index in indices])
        batch = {name: self._zeros((len(indices), *shape), dtype) for name, (shape, dtype) in self.examples.shapes.items()}
        for row, index in enumerate(indices):
            self.examples.fill(index, {name: np.asarray(array)[row, ...] for name, array in batch.items()})
        return batch

    def _zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if not self.shared or 0 in shape:
            return np.zeros(shape, dtype)
        from grain.multiprocessing import SharedMemoryArray

        return SharedMemoryArray(shape, np.dtype(dtype))  # fresh pages, which are zeros

    def __repr__(self) -> str:
        return f"rows {self.rows[0]} to {self.rows[1]} of batches of {self.batch} from step {self.start}"


def stack(examples: Sequence[Example]) -> Batch:
    """Examples with the same fields and shapes -> arrays with a leading batch axis. Raises ValueError naming the field that differs."""
    fields = set(examples[0])
    for example in examples[1:]:
        if set(example) != fields:
            raise ValueError(f"examples of one batch have different fields: {', '.join(sorted(fields ^ set(example)))}")
    batch = {}
    for name in sorted(fields):
        values = [np.asarray(example[name]) for example in examples]
        kinds = {(value.shape, value.dtype.str) for value in values}
        if len(kinds) > 1:
            raise ValueError(f"{name}: examples of one batch have different shapes or types: {sorted(kinds)}")
        batch[name] = np.stack(values)
    return batch


def process_rows(batch: int, process_index: int, process_count: int) -> tuple[int, int]:
    """The rows [first, end) of a batch that one of several equal processes reads. Raises ConfigError if they do not divide."""
    if batch % process_count:
        raise ConfigError(f"batch: {batch} does not divide by {process_count} processes")
    share = batch // process_count
    return process_index * share, (process_index + 1) * share


def batches(
    examples: Examples,
    *,
    batch: int,
    steps: int,
    start: int = 0,
    rows: tuple[int, int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Iterator over the batches of steps `start` .. `steps` - 1 (this process' rows of them), each a dict of NumPy arrays.

    rows: [first, end) of every batch, where the mesh decides them; otherwise process `process_index` of `process_count` takes its equal
    share. workers: processes that make batches (0 = threads of this process; on few cores threads are faster). prefetch: batches ahead.
    Close the iterator (`close()`) when leaving it early. An error in `example` is raised here, at the batch it belongs to.
    """
    import grain  # here and not above: grain imports jax, and a data worker that only wants `stack` should not

    if rows is None:
        rows = process_rows(batch, process_index, process_count)
    if start >= steps:
        return iter(())
    source = _Batches(examples, batch, rows, start, steps, shared=workers > 0)
    # Of each process that makes batches; with workers one more waits in each one's queue, and one is in the making.
    ahead = max(1, prefetch // workers - 1) if workers else max(1, prefetch)
    dataset: Any = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=max(1, min(threads, ahead)), prefetch_buffer_size=ahead)
    )
    if workers > 0:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's worker processes inherit absl flags and refuse to start without
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    return iter(dataset)
