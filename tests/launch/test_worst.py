"""From a report and its videos to a page with pictures; and one line for what cannot be shown."""

import dataclasses
import json

import pytest
from PIL import Image

from launch import worst
from launch.cli import run
from revision_jax.evaluation import datasets, report
from revision_jax.evaluation.outcome import Outcome
from revision_jax.ui import mistake


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def item(films):
    return datasets.rendered("test", films, [1], 60.0)[0]


def saved(path, outcomes, dataset="synthetic"):
    report.save(path, report.build(outcomes, {"method": "model", "checkpoint": "Tiny", "dataset": dataset, "split": "test"}, resamples=10))
    return path


def outcomes_of(item):
    """Every question answered with the film's first seconds, the surer the later it was asked."""
    return [
        Outcome(
            item.name, asked.query_id, asked.query, asked.kind, item.duration_s, asked.truth, ((0.0, 2.0, 0.5 + number / 20, True),), survivors=((0.0, 30.0),)
        )
        for number, asked in enumerate(item.questions)
    ]  # fmt: skip


def test_a_page_and_a_picture_for_each(item, films, tmp_path, capsys):
    path, out = saved(tmp_path / "run.json", outcomes_of(item)), tmp_path / "docs" / "worst"
    worst.main([str(path), "--out", str(out), "--videos", str(films), "--count", "3"])
    assert sorted(file.name for file in out.iterdir()) == ["01.png", "02.png", "03.png", "README.md"]
    for number in (1, 2, 3):
        file = out / f"{number:02d}.png"
        assert file.stat().st_size <= mistake.LIMIT and Image.open(file).width == mistake.WIDTH
    page = (out / "README.md").read_text()
    assert page.count("\n## ") == 4 and all(f"]({number:02d}.png)" in page for number in (1, 2, 3))
    assert f"of {len(item.questions)} questions were answered wrong" in page and "here are the worst 3" in page
    assert "Method model, checkpoint Tiny, dataset synthetic, split test" in page
    shown = page.split("| **shown** | ")[1].splitlines()[0]
    assert shown.startswith("**3** |") and f"| asked | {len(item.questions)} |" in page
    assert "the 3 worst of" in capsys.readouterr().out


def test_a_folder_of_videos_and_no_frames(item, films, tmp_path):
    """The same film as one of a folder, with its question's words as Markdown would take them; then without any video."""
    named = [dataclasses.replace(one, video=item.video.parent.relative_to(films).as_posix()) for one in outcomes_of(item)]
    worst.main([str(saved(tmp_path / "folder.json", named, "folder")), "--out", str(tmp_path / "a"), "--videos", str(films), "--count", "1"])
    odd = [dataclasses.replace(one, query="a *dog* | runs", video="nowhere") for one in named]
    worst.main([str(saved(tmp_path / "mad.json", odd, "mad")), "--out", str(tmp_path / "b"), "--no-frames"])
    heights = [Image.open(tmp_path / name / "01.png").height for name in "ab"]
    assert heights[0] > heights[1] + mistake.FRAME
    page = (tmp_path / "b" / "README.md").read_text()
    assert r"## 1. a \*dog\* \| runs" in page and "here are all of them" in page and "static" not in page


def test_nothing_wrong_is_a_page_too(item, tmp_path):
    right = [dataclasses.replace(one, moments=tuple((*moment, 0.9, True) for moment in one.truth)) for one in outcomes_of(item)]
    worst.main([str(saved(tmp_path / "run.json", right)), "--out", str(tmp_path / "out"), "--videos", str(tmp_path)])
    assert "0 of" in (tmp_path / "out" / "README.md").read_text() and len(list((tmp_path / "out").iterdir())) == 1


def test_what_cannot_be_shown_is_one_line(item, films, tmp_path, capsys):
    asked = outcomes_of(item)
    good, listed = saved(tmp_path / "run.json", asked), saved(tmp_path / "listed.json", asked, "qvhighlights")
    other = saved(tmp_path / "other.json", [dataclasses.replace(one, query="a blue ring") for one in asked])
    named = saved(tmp_path / "named.json", [dataclasses.replace(one, video="gone") for one in asked])
    folder = saved(tmp_path / "folder.json", asked, "folder")
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**json.loads(good.read_text()), "questions": []}))
    (tmp_path / "not.json").write_text('{"R1@0.5": 90.0}')
    cases = [
        ([str(good), "--count", "0"], "--count: must be at least 1, is 0"),
        ([str(good), "--no-frames"], "leave out --videos"),
        ([str(tmp_path / "gone.json")], "gone.json: no such file"),
        ([str(tmp_path / "not.json")], "not.json: is not the --json file of an evaluation"),
        ([str(empty)], "empty.json: holds no answers"),
        ([str(listed)], f"lacks 1 of 1 videos: {item.name}; a file is called by its video's id"),
        ([str(other)], "is not the video that question"),
        ([str(named)], "'gone' is not one of the split 'test'"),
        ([str(folder)], f"lacks {item.name}; give the folder that launch.evaluate had as --data"),
    ]
    for arguments, says in cases:
        with pytest.raises(SystemExit) as caught:
            run(lambda arguments=arguments: worst.main([*arguments, "--out", str(tmp_path / "out"), "--videos", str(films)]))
        error = capsys.readouterr().err
        assert caught.value.code == 2 and says in error and error.count("\n") == 1, (arguments, error)
    with pytest.raises(SystemExit):
        run(lambda: worst.main([str(listed), "--out", str(tmp_path / "out")]))
    assert "--videos: a folder must be given for answers about qvhighlights" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_no_other_videos_of_the_world_are_rendered(item, films):
    assert datasets.films({"dataset": "synthetic", "split": "test"}, outcomes_of(item), films) == {item.name: item.video}
    assert item.name == "test-001" and [path.name for path in item.video.parents[1].iterdir()] == ["001"]
