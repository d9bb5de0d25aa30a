"""data/record_layout.py: records found by arithmetic are the records that ArrayRecord wrote."""

import os

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revision_jax.data import record_layout
from revision_jax.data.records import READER_OPTIONS, WRITER_OPTIONS

# Around a block's 65,512 bytes (less the chunk's own 43), and around the lengths at which a varint grows.
EDGES = [0, 1, 127, 128, 16383, 16384, *range(65460, 65480), 65512, 65536, 131024, 2097151, 2097152]
lengths = st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 70_000)), min_size=1, max_size=12)


def write(path, sizes):
    data = [np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes() for size in sizes]
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in data:
        writer.write(record)
    writer.close()
    return data


@given(lengths, st.integers(0, 2**32))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_lie_where_their_lengths_say(tmp_path, sizes, seed):
    data = write(tmp_path / "a", sizes)
    places = record_layout.starts(sizes)
    with open(tmp_path / "a", "rb") as file:
        for number in np.random.default_rng(seed).permutation(len(sizes)):
            out = np.zeros(sizes[number], np.uint8)
            record_layout.read(file.fileno(), int(places[number]), out)
            assert out.tobytes() == data[number]
            cut = sizes[number] // 3  # several buffers share what they are given
            parts = np.zeros(cut, np.uint8), np.zeros(sizes[number] - cut, np.uint8)
            record_layout.read(file.fileno(), int(places[number]), *parts)
            assert b"".join(part.tobytes() for part in parts) == data[number]


def test_a_record_of_more_pieces_than_a_call_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(record_layout, "PIECES", 3)
    (record,) = write(tmp_path / "a", [1_000_000])
    out = np.zeros(1_000_000, np.uint8)
    with open(tmp_path / "a", "rb") as file:
        record_layout.read(file.fileno(), int(record_layout.starts([1_000_000])[0]), out)
    assert out.tobytes() == record


def test_a_file_that_ends_early_is_told(tmp_path):
    write(tmp_path / "a", [100_000])
    os.truncate(tmp_path / "a", 70_000)
    with open(tmp_path / "a", "rb") as file, pytest.raises(EOFError, match="ends early"):
        record_layout.read(file.fileno(), int(record_layout.starts([100_000])[0]), np.zeros(100_000, np.uint8))


def test_the_reader_that_came_with_the_format_agrees(tmp_path):
    data = write(tmp_path / "a", [5, 70_000, 0, 300])
    assert ArrayRecordReader(str(tmp_path / "a"), READER_OPTIONS).read([0, 1, 2, 3]) == data
