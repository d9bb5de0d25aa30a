"""Journals after a kill, after a spoilt disk, and when nothing can be written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision_jax.curation.journal import Journal, packed, unpacked
from revision_jax.errors import UserError


def test_rows_are_there_at_once_and_a_line_cut_by_a_kill_goes(tmp_path):
    path = tmp_path / "deep" / "a.jsonl"
    journal = Journal(path)
    journal.add([("one", {"x": 1}), ("two", {"x": "ä"})])
    assert "one" in journal and "three" not in journal
    assert Journal(path).rows == {"one": {"x": 1}, "two": {"x": "ä"}}
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        assert set(again.rows) == {name for name, line in zip(("one", "two"), whole.splitlines(keepends=True), strict=True) if whole[:cut].find(line) >= 0}
        again.add([("three", {"x": 3})])
        assert Journal(path).rows == {**again.rows, "three": {"x": 3}}


def test_a_spoilt_line_counts_as_missing_and_a_later_row_wins(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b'{"key": "a", "x": 1}\nnot json \xff\n[]\n{"x": 2}\n{"key": "a", "x": 3}\n')
    assert Journal(path).rows == {"a": {"x": 3}}


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a.jsonl: could not be written \(.*\); what was there is kept"):
        Journal(tmp_path / "file" / "a.jsonl").add([("a", {})])
    with pytest.raises(ValueError):
        Journal(tmp_path / "b").add([("a", {"x": float("nan")})])
    assert not (tmp_path / "b").exists()


@given(st.sampled_from(["float16", "float32", "uint8"]), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_arrays_come_back(dtype, shape):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    back = unpacked(packed(array[::-1]))
    assert back.dtype == array.dtype and np.array_equal(back, array[::-1])
