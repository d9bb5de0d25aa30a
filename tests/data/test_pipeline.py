import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision_jax.config import ConfigError
from revision_jax.data.pipeline import batches, process_rows, stack


class Numbers:
    """Example i holds i; the thread that made it is noted."""

    def __init__(self):
        self.threads = set()

    def example(self, index):
        self.threads.add(threading.get_ident())
        return {"index": np.int64(index), "x": np.full((2, 3), index, np.float16)}


class Plain:
    """The same without state, for worker processes."""

    def example(self, index):
        return {"index": np.int64(index), "x": np.full((2, 3), index, np.float16)}


class Broken:
    def example(self, index):
        if index == 5:
            raise ValueError("example 5 cannot be read")
        return {"index": np.int64(index)}


def indices(**arguments):
    return [batch["index"].tolist() for batch in batches(Numbers(), **arguments)]


@settings(max_examples=15, deadline=None)
@given(
    share=st.integers(1, 3), count=st.integers(1, 3), steps=st.integers(0, 6), start=st.integers(0, 6), threads=st.integers(1, 3), prefetch=st.integers(1, 4)
)
def test_batches_are_a_function_of_the_step(share, count, steps, start, threads, prefetch):
    batch = share * count
    wanted = [[step * batch + row for row in range(batch)] for step in range(start, steps)]
    assert indices(batch=batch, steps=steps, start=start, threads=threads, prefetch=prefetch) == wanted
    parts = [indices(batch=batch, steps=steps, start=start, process_index=p, process_count=count) for p in range(count)]
    assert [[index for part in rows for index in part] for rows in zip(*parts, strict=True)] == wanted


def test_arrays_stay_numpy_with_their_types_and_the_training_thread_makes_none():
    examples = Numbers()
    first = next(iter(batches(examples, batch=4, steps=3)))
    assert type(first["x"]) is np.ndarray and first["x"].shape == (4, 2, 3) and first["x"].dtype == np.float16
    assert first["index"].dtype == np.int64
    assert threading.get_ident() not in examples.threads and examples.threads


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_from_any_step():
    for start in (0, 3):
        stream = batches(Plain(), batch=4, steps=6, start=start, workers=2)
        assert [batch["index"].tolist() for batch in stream] == [list(range(4 * step, 4 * step + 4)) for step in range(start, 6)]
        stream.close()


def test_rows_chosen_by_the_mesh():
    assert indices(batch=6, steps=2, rows=(2, 4)) == [[2, 3], [8, 9]]
    with pytest.raises(ConfigError, match="batch: 6 does not divide by 4 processes"):
        process_rows(6, 0, 4)


def test_an_error_arrives_at_its_batch():
    stream = batches(Broken(), batch=2, steps=4)
    assert [next(stream)["index"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="example 5"):
        next(stream)


def test_examples_may_collate_themselves():
    class Pairs(Plain):
        def collate(self, examples):
            return {"sum": np.asarray([sum(example["index"] for example in examples)])}

    assert [batch["sum"].tolist() for batch in batches(Pairs(), batch=2, steps=2)] == [[1], [5]]


class Filled:
    """Examples that write themselves into their row."""

    shapes = {"index": ((), "int64"), "x": ((2, 3), "float16"), "none": ((0, 4), "float16")}  # noqa: RUF012

    def example(self, index):
        out = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.shapes.items()}
        self.fill(index, out)
        return out

    def fill(self, index, out):
        assert not out["x"].any()
        out["index"][...], out["x"][:] = index, index


def check_filled(stream, batch, steps, start=0):
    for step, made in zip(range(start, steps), stream, strict=True):
        assert made["index"].tolist() == list(range(step * batch, (step + 1) * batch))
        assert made["x"].shape == (batch, 2, 3) and made["x"].dtype == np.float16 and (made["x"][:, 1, 2] == made["index"]).all()
        assert made["none"].shape == (batch, 0, 4)


def test_examples_may_fill_their_row_of_a_batch():
    check_filled(batches(Filled(), batch=4, steps=5, start=2), 4, 5, 2)


@pytest.mark.slow
def test_worker_processes_fill_shared_memory():
    stream = batches(Filled(), batch=4, steps=6, start=1, workers=2)
    check_filled(stream, 4, 6, 1)
    stream.close()


def test_stack_names_the_field_that_differs():
    with pytest.raises(ValueError, match="x: examples of one batch have different shapes"):
        stack([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    with pytest.raises(ValueError, match="different fields: y"):
        stack([{"x": np.zeros(2)}, {"x": np.zeros(2), "y": np.zeros(1)}])
