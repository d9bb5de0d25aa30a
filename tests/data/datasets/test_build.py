"""A build as a whole: the same bytes every time, at once or not at all, with no network and no TensorFlow, and readable by TFDS alone."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest

from revision_jax.config import ConfigError
from revision_jax.data.datasets import registry
from revision_jax.data.datasets.base import named
from revision_jax.data.datasets.build import build, examples, find, opened, read
from revision_jax.data.datasets.jsonl import Jsonl
from revision_jax.errors import UserError
from tests.data.datasets.owners import built, facts, jsonl, put

ROW = {"video_id": "v", "duration_s": 60.0, "query": "a dog — barks", "moments": [[1.5, 9.0]]}


def bytes_of(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_are_the_same_bytes_and_leave_nothing_else(tmp_path):
    rows = [{**ROW, "query_id": f"q{number}"} for number in range(50)]
    put(tmp_path / "manual", "train.jsonl", jsonl(*rows))
    first, second = (build("jsonl", tmp_path / "manual", tmp_path / place) for place in ("one", "two"))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["jsonl"] and [path.name for path in (tmp_path / "one" / "jsonl").iterdir()] == ["default"]
    files = ["dataset_info.json", "features.json", "jsonl-train.array_record-00000-of-00001", "metadata.json"]
    assert sorted(path.name for path in first.path.iterdir()) == files
    assert [example.query_id for example in examples(second, "train")] == [f"q{number}" for number in range(50)]  # the owners' order
    assert str(tmp_path) not in "".join(path.read_text() for path in first.path.glob("*.json"))


def test_what_was_built_is_kept_until_its_files_or_rules_change(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    first, _ = built("jsonl", tmp_path)
    stamp = (first.path / "metadata.json").stat().st_mtime_ns
    assert built("jsonl", tmp_path)[0] == first and (first.path / "metadata.json").stat().st_mtime_ns == stamp
    other, _ = built("jsonl", tmp_path, "", "lowercase=true")
    assert other.config != first.config and other.metadata["rules"]["lowercase"] is True
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW, {**ROW, "query": "and a cat"}))
    again, found = built("jsonl", tmp_path)
    assert again.path == first.path and len(found["train"]) == 2
    assert find(tmp_path / "out", "jsonl", other.config) == other
    with pytest.raises(UserError, match=r"several built datasets: default, default-"):
        find(tmp_path / "out", "jsonl")


def test_errors_are_told_together_and_nothing_is_left(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW, {**ROW, "moments": [[9, 1]]}, {**ROW, "query_id": "1"}, ROW))
    put(tmp_path / "manual", "validation.jsonl", jsonl({**ROW, "moments": [[9, 99]]}, ROW))
    with pytest.raises(UserError) as error:
        built("jsonl", tmp_path, "", "splits=train,validation")
    said = str(error.value)
    assert said.startswith("jsonl: 3 bad annotations: ") and "on_error=skip" in said
    assert "train.jsonl:2" in said and "train.jsonl:3: query_id '1' is there twice" in said and "validation.jsonl:1" in said
    assert not (tmp_path / "out").exists()
    done, found = built("jsonl", tmp_path, "", "splits=train,validation", "on_error=skip")
    assert done.counts == {
        "train": {"kept": 2, "skipped: duplicate_id": 1, "skipped: reversed_moment": 1}, "validation": {"kept": 1, "skipped: outside_moment": 1},
    }  # fmt: skip
    assert [facts(example)[2] for example in found["train"]] == ["1", "4"]


def test_many_errors_are_counted_and_the_first_are_told(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(*[{**ROW, "moments": [[9, 1]]}] * 500, ROW))
    with pytest.raises(UserError) as error:
        built("jsonl", tmp_path)
    assert "500 bad annotations" in str(error.value) and "and 490 more" in str(error.value) and len(str(error.value)) < 2000


def test_a_failed_rebuild_leaves_the_old_one(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    first, _ = built("jsonl", tmp_path)
    before = bytes_of(tmp_path / "out")
    put(tmp_path / "manual", "train.jsonl", jsonl({**ROW, "moments": None}))
    with pytest.raises(UserError, match=r"train.jsonl:1: has no moment; a question without an answer has an empty list"):
        built("jsonl", tmp_path)
    assert bytes_of(tmp_path / "out") == before and opened(first.path).counts == {"train": {"kept": 1}}


def test_a_video_has_one_length(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW, {**ROW, "duration_s": 60.5}, {**ROW, "duration_s": 90.0}))
    with pytest.raises(UserError, match=r"1 bad annotation: train.jsonl:3: video 'v' lasts 90 s here and 60 s before"):
        built("jsonl", tmp_path)


def test_no_network_no_tensorflow_and_no_noise(tmp_path, monkeypatch, capfd):
    def refuse(*_, **__):
        raise AssertionError("no connection may be opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    built("jsonl", tmp_path)
    assert capfd.readouterr() == ("", "") and "tensorflow" not in sys.modules


def test_tfds_reads_it_without_this_program(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW, {**ROW, "moments": []}))
    done, _ = built("jsonl", tmp_path)
    code = f"""
import sys, tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(done.path)!r}).as_data_source("train")
one = source[1]
assert len(source) == 2 and one["moments"].shape == (0, 2) and one["kind"] == b"absent" and source[0]["query"].decode() == {ROW["query"]!r}
assert "tensorflow" not in sys.modules and "revision_jax" not in sys.modules and "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr


def test_a_builder_works_as_any_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    builder = tfds.builder("jsonl", data_dir=tmp_path / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path / "manual", try_download_gcs=False)
    builder.download_and_prepare(download_dir=tmp_path / "downloads", download_config=config)
    assert builder.as_data_source("train")[0]["video_id"] == b"v" and builder.info.metadata["counts"] == {"train": {"kept": 1}}


def test_folders_that_hold_no_dataset(tmp_path):
    with pytest.raises(UserError, match=r"holds no built dataset; build it"):
        find(tmp_path, "jsonl")
    put(tmp_path / "jsonl" / "default" / "1.0.0", "metadata.json", {"counts": {}})
    with pytest.raises(UserError, match=r"1.0.0: not a dataset built by this program"):
        opened(tmp_path / "jsonl" / "default")
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    done, _ = built("jsonl", tmp_path)
    with pytest.raises(UserError, match=r"has no split 'test', only train"):
        read(done, "test")


@pytest.mark.parametrize(
    ("preset", "rule", "says"),
    [
        ("9k", "", "no preset '9k'; there are default, all"),
        ("", "speed=3", "unknown field speed; known are splits"),
        ("", "on_error=maybe", "on_error"),
        ("", "slack_s=much", "slack_s"),
        ("", "slack_s=-1", "slack_s"),
        ("", "lowercase=yes", "lowercase"),
        ("", "lowercase", "field=value"),
        ("", "splits=train,train", "splits"),
        ("", "splits=", "splits"),
    ],
)
def test_rules_that_cannot_be(preset, rule, says):
    with pytest.raises(ConfigError, match=says):
        named(Jsonl, preset, [rule] if rule else [])


def test_rules_by_name():
    assert named(Jsonl).rules == Jsonl.RULES["default"] and named(Jsonl).name == "default"
    assert named(Jsonl, "", ["slack_s=0.0"]).name == "default"
    first, second = (named(Jsonl, "all", rules) for rules in (["slack_s=2"], ["slack_s=2", "on_error=skip"]))
    assert first.name != second.name and first.name.startswith("all-") and second.rules.slack_s == 2.0 and second.rules.on_error == "skip"


def test_splits_that_a_dataset_does_not_have(tmp_path):
    (tmp_path / "manual").mkdir()
    with pytest.raises(ConfigError, match=r"charades_sta rule.splits: validation is not one of train, test"):
        built("charades_sta", tmp_path, "", "splits=train,validation")


def test_the_registry_imports_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, revision_jax.data.datasets.registry; print('tensorflow_datasets' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
    assert set(registry.GROUNDING) < set(registry.NAMES)


def test_metadata_is_plain_json(tmp_path):
    put(tmp_path / "manual", "train.jsonl", jsonl(ROW))
    done, _ = built("jsonl", tmp_path)
    about = json.loads((done.path / "metadata.json").read_text())
    assert about == done.metadata and about["sources"] == {"train.jsonl": hashlib.sha256(jsonl(ROW).encode()).hexdigest()}
