"""A user's own data: every field, and every mistake named with its line."""

import pytest

from revision_jax.data.datasets.jsonl import Jsonl, JsonlRules
from revision_jax.errors import UserError
from tests.data.datasets.owners import facts, jsonl, put

ROW = {"video_id": "holiday", "duration_s": 5400, "query": "Der Hund springt in den Süßwassersee 🐕", "moments": [[61.5, 70.0], [5399, 5400]]}


def read(tmp_path, content, **rules):
    put(tmp_path, "train.jsonl", content)
    return list(Jsonl.examples("train", tmp_path, JsonlRules(**rules)))


def test_every_field(tmp_path):
    full = {**ROW, "query_id": "a-1", "kind": "several", "category": "dogs", "source_id": "raw", "offset_s": 12}
    first, second, third = read(tmp_path, jsonl(ROW, full, {**ROW, "moments": [], "kind": "near_miss"}))
    assert facts(first) == ("holiday", 5400.0, "1", ROW["query"], [[61.5, 70.0], [5399.0, 5400.0]], "several")
    assert (second.query_id, second.category, second.source_id, second.offset_s) == ("a-1", "dogs", "raw", 12.0)
    assert third.kind == "near_miss" and third.query_id == "3"


def test_mistakes_are_named_with_their_line(tmp_path):
    rows = [
        {"video_id": "v", "query": "x", "moments": []},
        {**ROW, "start": 3, "answer": "yes"},
        [1, 2],
        {**ROW, "moments": "61.5-70"},
        {**ROW, "moments": [61.5, 70.0]},
        {key: value for key, value in ROW.items() if key != "moments"},
        {**ROW, "kind": "absent"},
        {**ROW, "offset_s": "late"},
        {**ROW, "category": 2.5},
    ]
    with pytest.raises(UserError) as error:
        read(tmp_path, jsonl(*rows) + "{'video_id': 'v'}\n")
    said = str(error.value)
    for line, what in [
        (1, "lacks duration_s"), (2, "has unknown fields answer, start; known are video_id"), (3, "must be an object"), (4, "must be a list of [start, end]"),
        (5, "moment 1 must be two numbers"), (6, "has no moment"), (7, "is 'absent' and has 2 moments"), (8, "offset_s must be a number"), (9, "category"),
        (10, "is not JSON"),
    ]:  # fmt: skip
        assert f"train.jsonl:{line}: " in said and what in said, (line, what, said)


def test_bytes_that_are_no_text(tmp_path):
    content = jsonl(ROW).encode() + jsonl(ROW).encode("latin-1", "replace").replace(b"?", b"x") + b"\x80\n"
    with pytest.raises(UserError, match=r"2 bad annotations: train.jsonl:2: is not UTF-8 .*train.jsonl:3: is not UTF-8 \(byte 0x80 at 1\)"):
        read(tmp_path, content)
    assert len(read(tmp_path, content, on_error="skip")) == 1


def test_the_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"lacks test.jsonl. jsonl is asked for at yourself"):
        list(Jsonl.examples("test", tmp_path, JsonlRules()))
