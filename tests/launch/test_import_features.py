"""The command: stores at their place, and one line and status 2 for what cannot be used."""

import json

import numpy as np
import pytest

from launch import import_features
from launch.cli import run
from revision_jax.data.datasets.build import build
from revision_jax.data.features import FeatureStore
from revision_jax.data.text_features import TextFeatureStore
from tests.data.datasets.owners import jsonl, put


def save(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype(np.float16))
    return folder


def call(*arguments):
    import_features.main([str(argument) for argument in arguments])


def test_videos(tmp_path, capsys):
    source = save(tmp_path / "in", a=np.ones((100, 8)), b=np.ones((60, 8)), c=np.ones((60, 9)))
    (tmp_path / "durations.json").write_text(json.dumps({"a": 50, "b": 90.5, "missing": 10}))
    options = (source, "--out", tmp_path / "out", "--rate", 2, "--width", 8, "--encoder", "clip")
    call(*options, "--durations", tmp_path / "durations.json", "--skip-bad")
    said = capsys.readouterr()
    assert said.out == "1 written, 0 kept, 1 skipped: too short, 1 skipped: unreadable\n" and said.err.count("skipped: ") == 2
    store = FeatureStore(tmp_path / "out" / "a.features")
    assert store.frames == 100 and store.header.encoder == "clip" and store.header.duration_s == 50
    assert not (tmp_path / "out" / "b.features").exists()
    with pytest.raises(SystemExit) as ended:
        run(lambda: call(*options))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: 1 entries cannot be imported") and "(60, 9)" in said and said.count("\n") == 1


def test_queries(tmp_path, capsys):
    source = save(tmp_path / "in", q1=np.ones((7, 8)), q2=np.zeros((3, 8)))
    (tmp_path / "texts.json").write_text(json.dumps({"q1": "a man walks.", "q2": "a dog runs."}))
    call(source, "--out", tmp_path / "queries", "--queries", tmp_path / "texts.json", "--width", 8, "--max-tokens", 5)
    store = TextFeatureStore(tmp_path / "queries")
    assert store.encoder == "clip-vit-large-patch14" and store.features("a man walks")["tokens"].shape == (5, 8) and "2 written" in capsys.readouterr().out


def test_a_built_dataset_says_what_is_wanted(tmp_path, capsys):
    """Its videos with their lengths, and its questions by their ids, of all splits."""
    row = lambda video, number, query: {"video_id": video, "duration_s": 50, "query": query, "moments": [[1, 9]], "query_id": number}
    put(tmp_path / "manual", "train.jsonl", jsonl(row("a", "q1", "A man walks."), row("a", "q2", "a dog runs")))
    put(tmp_path / "manual", "test.jsonl", jsonl(row("b", "q3", "a bird sings")))
    build("jsonl", tmp_path / "manual", tmp_path / "built", rules=["splits=train,test"])
    videos = save(tmp_path / "videos", a=np.ones((100, 8)), b=np.ones((100, 8)), other=np.ones((100, 8)))
    texts = save(tmp_path / "texts", q1=np.ones((7, 8)), q2=np.ones((3, 8)), q3=np.ones((3, 8)), q9=np.ones((3, 8)))
    (folder,) = (tmp_path / "built" / "jsonl").iterdir()
    for built in (folder, folder.parent):  # of the rules, and above
        call(videos, "--out", tmp_path / "stores", "--rate", 2, "--width", 8, "--durations", built)
        call(texts, "--out", tmp_path / "queries", "--width", 8, "--queries", built)
    assert sorted(path.name for path in (tmp_path / "stores").iterdir()) == ["a.features", "b.features"]
    assert FeatureStore(tmp_path / "stores" / "b.features").header.duration_s == 50
    assert sorted(TextFeatureStore(tmp_path / "queries").texts()) == ["a bird sings", "a dog runs", "a man walks"]
    assert capsys.readouterr().out.splitlines()[:3] == ["2 written, 0 kept", "3 written, 0 kept", "0 written, 2 kept"]


def test_bad_arguments(tmp_path, capsys):
    source = save(tmp_path / "in", a=np.ones((100, 8)))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    for arguments, message in (
        ([source], "--rate: must be given"),
        ([source, "--rate", "-1"], "--rate: must be given for videos, above 0"),
        ([source, "--rate", "2", "--width", "0"], "--width, --max-tokens: must be at least 1"),
        ([source, "--rate", "2", "--queries", tmp_path / "list.json"], "queries have no --rate"),
        ([source, "--rate", "2", "--durations", tmp_path / "list.json"], "list.json: is not one JSON object"),
        ([source, "--queries", tmp_path / "broken.json"], "broken.json: cannot be read as JSON"),
        ([source, "--rate", "2", "--durations", source], "in: holds no built dataset"),
        ([tmp_path / "none", "--rate", "2"], "none: no such file or folder; wanted is"),
        ([tmp_path / "list.json", "--rate", "2"], "list.json: another kind of file; wanted is"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(lambda arguments=arguments: call(*arguments, "--out", tmp_path / "out"))
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and message in said, said
        assert not (tmp_path / "out").exists()
