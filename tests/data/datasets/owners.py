"""Files in the owners' layouts, and a build of them read back."""

import json

import numpy as np

from revision_jax.data.datasets.build import build, examples, read


def put(folder, name, content):
    """A file: text or bytes as they are, anything else as JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def built(name, tmp_path, preset="", *rules):
    """The dataset of tmp_path/manual, and its examples by split."""
    done = build(name, tmp_path / "manual", tmp_path / "out", preset, rules)
    return done, {split: list(examples(done, split)) for split in done.counts}


def facts(example):
    """What a grounding example says, in plain values."""
    spans = [[round(float(start), 3), round(float(end), 3)] for start, end in example.moments]
    return example.video_id, round(example.duration_s, 3), example.query_id, example.query, spans, example.kind


def random_access(done, split):
    """The records by number, backwards, and the same in one call: what a loader does."""
    source = read(done, split)
    backwards = [source[number] for number in reversed(range(len(source)))]
    together = source.__getitems__(list(range(len(source))))
    for one, other in zip(reversed(backwards), together, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_array_equal(one["moments"], other["moments"])
        assert one["moments"].dtype == np.float32 and one["moments"].shape[1:] == (2,)
        assert one["query_id"] == other["query_id"]
    return together
