"""Annotation files: what is read from a good one, and what is said about a bad one."""

import json

import pytest

from revision_jax.config import DataConfig
from revision_jax.errors import UserError
from revision_jax.evaluation import datasets

GOOD = {
    "duration_s": 60.0,
    "queries": [
        {"query_id": "a", "query": "a red ring", "kind": "one", "moments": [[5, 10.5]]},
        {"query_id": "b", "query": "a blue ring", "kind": "near_miss", "moments": []},
        {"query_id": "c", "query": "a ring", "moments": [[5, 10], [20, 30]]},
    ],
}


def place(folder, about, video="film.mkv"):
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(about))
    if video:
        (folder / video).write_bytes(b"")
    return folder


def test_a_folder_of_annotated_videos(tmp_path):
    place(tmp_path / "second", GOOD)
    place(tmp_path / "first", GOOD)
    items = datasets.folder(tmp_path)
    assert [item.name for item in items] == ["first", "second"] and items[0].video.name == "film.mkv"
    assert [(q.query_id, q.kind) for q in items[0].questions] == [("a", "one"), ("b", "near_miss"), ("c", "several")]
    assert items[0].questions[0].truth == ((5.0, 10.5),)
    assert len(datasets.folder(tmp_path, 1)) == 1 and all(q.tags == () for q in items[0].questions)


def test_tags_of_questions(tmp_path):
    place(tmp_path / "one", {**GOOD, "tags": {"a": ["indoors", "short", "indoors"], "c": []}})
    assert [q.tags for q in datasets.folder(tmp_path)[0].questions] == [("indoors", "short"), (), ()]


def changed(**fields):
    return {**GOOD, "queries": [{**GOOD["queries"][0], **fields}]}


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (changed(kind="maybe"), "maybe"),
        (changed(kind="absent"), "'absent' and has 1 moments"),
        (changed(moments=[[10, 5]]), "inside the video"),
        (changed(moments=[[50, 90]]), "inside the video"),
        ({"duration_s": 60.0, "queries": [GOOD["queries"][0]] * 2}, "query_id"),
        ({"duration_s": 60.0}, "queries"),
        ([], "annotation file"),
        ({**GOOD, "tags": {"a": "indoors"}}, 'question a: tags must be a list of words, are "indoors"'),
        ({**GOOD, "tags": {"b": ["x", 3]}}, "question b: tags must be a list of words"),
        ({**GOOD, "tags": ["x"]}, "annotation file"),
    ],
)
def test_bad_annotations_are_named(tmp_path, about, says):
    place(tmp_path / "v", about)
    with pytest.raises(UserError, match=says) as error:
        datasets.folder(tmp_path)
    assert "annotations.json" in str(error.value)


def test_a_missing_video_or_folder_is_named(tmp_path):
    place(tmp_path / "v", GOOD, video=None)
    with pytest.raises(UserError, match="exactly one video"):
        datasets.folder(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        datasets.folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no annotations"):
        datasets.folder(tmp_path / "empty")


def test_splits_have_the_sizes_of_the_config():
    data = DataConfig(train_videos=24, validation_videos=6, test_videos=20)
    assert [datasets.videos_of(split, data) for split in ("train", "validation", "test", "length")] == [24, 6, 20, 6]
    with pytest.raises(UserError, match="not one of"):
        datasets.videos_of("exam", data)


@pytest.mark.slow
def test_the_world_is_rendered_once_and_again_when_it_is_another(tmp_path):
    items = datasets.synthetic("validation", tmp_path, 1, 60.0)
    assert items[0].duration_s == pytest.approx(60, abs=1) and len(items[0].questions) >= 1
    before = items[0].video.stat().st_mtime_ns
    assert datasets.synthetic("validation", tmp_path, 1, 60.0) == items and items[0].video.stat().st_mtime_ns == before
    notes = items[0].video.parent / "annotations.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "world_version": -1}))
    assert datasets.synthetic("validation", tmp_path, 1, 60.0) == items and items[0].video.stat().st_mtime_ns != before


def owners(folder):
    """QVHighlights as its owners give it: two videos, three questions."""
    rows = [
        {"qid": number, "query": f"question {number}", "duration": 150, "vid": video, "relevant_windows": [[10 * number, 10 * number + 8]]}
        for number, video in enumerate(("x_0.0_150.0", "y_0.0_150.0", "x_0.0_150.0"))
    ]
    folder.mkdir(parents=True)
    (folder / "highlight_val_release.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_dataset_of_the_field_from_its_owners_files_or_as_built(tmp_path):
    from revision_jax.data.datasets.build import build

    manual = owners(tmp_path / "manual")
    videos = tmp_path / "videos"
    for name in ("x_0.0_150.0.mp4", "deep/y_0.0_150.0.mkv"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"")
    items = datasets.field("qvhighlights", manual, "validation", videos)
    assert [(item.name, item.video.name, item.duration_s) for item in items] == [
        ("x_0.0_150.0", "x_0.0_150.0.mp4", 150.0), ("y_0.0_150.0", "y_0.0_150.0.mkv", 150.0),
    ]  # fmt: skip
    assert items[0].questions == (datasets.Asked("0", "question 0", "one", ((0.0, 8.0),)), datasets.Asked("2", "question 2", "one", ((20.0, 28.0),)))
    build("qvhighlights", manual, tmp_path / "out", rules=["splits=validation"])
    assert datasets.field("qvhighlights", tmp_path / "out", "validation", videos) == items
    assert datasets.field("qvhighlights", manual, "validation", videos, 1) == items[:1]
    (videos / "x_0.0_150.0.mp4").unlink()
    with pytest.raises(UserError, match=r"--videos: .* lacks 1 of 2 videos: x_0.0_150.0; a file is called by its video's id"):
        datasets.field("qvhighlights", manual, "validation", videos)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--data: .* is no folder"):
        datasets.field("mad", tmp_path / "nowhere", "test")
    with pytest.raises(UserError, match=r"lacks MAD_test.json"):
        datasets.field("mad", tmp_path, "test")
    with pytest.raises(UserError, match="has no preset '9k'"):
        datasets.field("mad/9k", tmp_path, "test")
    with pytest.raises(UserError, match="not one of train, validation, test"):
        datasets.field("mad", tmp_path, "exam")
