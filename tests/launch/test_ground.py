"""The command line: what it writes, and what it says about bad input (one line, status 2, nothing left behind)."""

from __future__ import annotations

import json

import pytest

from launch import cli, ground
from revision_jax.errors import UserError
from revision_jax.grounding.grounder import Grounder
from revision_jax.stored_programs import program_folder
from tests.grounding.conftest import config, state, tokenizer  # noqa: F401  fixtures
from tests.grounding.test_grounder import folder, write_video  # noqa: F401


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "film.mp4", seconds=30)


def refusal(capsys, arguments) -> str:
    """The one line of stderr that a call ends with, after checking its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: ground.main([str(a) for a in arguments]))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.mark.slow
def test_all_that_can_be_asked_for(video, folder, tmp_path, capsys):  # noqa: F811
    listed = tmp_path / "questions.jsonl"
    listed.write_text('{"query_id": "7", "query": "A red ring."}\n\na blue square\n', encoding="utf-8")
    out = {name: tmp_path / f"out.{name}" for name in ("json", "html", "png")}
    asked = ["--query", "small circles", "--queries", listed, "--checkpoint", folder, "--cache", tmp_path / "cache", "--top-k", 2, "--threshold", 0]
    ground.main([str(a) for a in (video, *asked, *(x for name, path in out.items() for x in (f"--{name}", path)), "--clips", tmp_path / "clips")])
    data = json.loads(out["json"].read_text(encoding="utf-8"))
    assert data["video"]["path"] == str(video) and data["video"]["duration_s"] == pytest.approx(30)
    assert [r["query"] for r in data["results"]] == ["small circles", "A red ring.", "a blue square"]
    assert [r.get("query_id") for r in data["results"]] == [None, "7", None]
    for result in data["results"]:
        assert result["present"] and 1 <= len(result["moments"]) <= 2 and result["moments"][0]["accepted"]
        for moment in result["moments"]:
            assert 0 <= moment["start_s"] < moment["end_s"] <= 30
    assert out["png"].read_bytes()[:4] == b"\x89PNG" and "data:image/jpeg" in out["html"].read_text(encoding="utf-8")
    clips = sorted((tmp_path / "clips").iterdir())
    assert len(clips) == sum(moment["accepted"] for r in data["results"] for moment in r["moments"])
    assert "A red ring." in capsys.readouterr().out
    # A second call, two videos, part of them: a list in the same order, nothing encoded again.
    again = (video, video, "--query", "a red ring", "--checkpoint", folder, "--cache", tmp_path / "cache", "--from", "5", "--to", "0:20")
    ground.main([str(a) for a in (*again, "--json", out["json"])])
    both = json.loads(out["json"].read_text(encoding="utf-8"))
    assert len(both) == 2 and both[0]["results"][0]["moments"] == both[1]["results"][0]["moments"]
    assert all(m["start_s"] >= 5 and m["end_s"] <= 20 for m in both[0]["results"][0]["moments"])
    assert both[0]["results"][0]["seconds"]["encode"] == 0


def test_bad_options(video, folder, tmp_path, capsys):  # noqa: F811
    asked = [video, "--checkpoint", folder, "--cache", tmp_path / "cache", "--json", tmp_path / "out.json"]
    empty, broken, other = (tmp_path / name for name in ("empty.txt", "broken.jsonl", "other.jsonl"))
    empty.write_text("\n\n")
    broken.write_text("fine\n{broken\n")
    other.write_text('{"question": "what?"}\n')
    for arguments, message in (
        ([], "nothing is asked"),
        (["--query", "  "], "query is empty"),
        (["--query", "x" * 10_000], "query has"),
        (["--query", "x " * 5_000], "query has"),
        (["--query", "ring", "--top-k", "0"], "--top-k: must be at least 1"),
        (["--query", "ring", "--top-k", "many"], "--top-k"),
        (["--query", "ring", "--threshold", "2"], "--threshold"),
        (["--query", "ring", "--max-false-alarms-per-hour", "-1"], "--max-false-alarms-per-hour: must be at least 0"),
        (["--query", "ring", "--max-false-alarms-per-hour", "1", "--threshold", "0.5"], "leave out --threshold"),
        (["--query", "ring", "--max-false-alarms-per-hour", "1"], "calibration.json: keeps no false alarms"),
        (["--query", "ring", "--from", "noon"], "--from: 'noon' is not a time"),
        (["--query", "ring", "--from", "20", "--to", "10"], "--from: 20 is not before --to 10"),
        (["--queries", tmp_path / "missing.txt"], "missing.txt: cannot be read"),
        (["--queries", empty], "holds no question"),
        (["--queries", broken], "broken.jsonl, line 2: not JSON"),
        (["--queries", other], 'line 1: has no text "query"'),
        (["--query", "ring", "--checkpoint", tmp_path / "nowhere"], "nowhere: no such checkpoint folder"),
        (["--query", "ring", "--checkpoint", tmp_path], "config.json is missing"),
        (["--query", "ring", "--memory-limit", "much"], "--memory-limit: 'much' is no amount of memory"),
        (["--query", "ring", "--memory-limit", "10KB"], "--memory-limit: 0.001 GB is too little, the smallest arrangement takes 0.0"),
        (["--query", "ring", "--cache-limit", "-1"], "--cache-limit: '-1' is no amount of memory"),
        (["--query", "ring", "--decoders", "0"], "--decoders: must be at least 1"),
        (["--no-such-option"], "--no-such-option"),
        (["--compile-only"], "--compile-only: takes no video and no question"),
    ):
        assert message in refusal(capsys, [*asked, *arguments])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_compile_only(folder, tmp_path, capsys):  # noqa: F811
    ground.main(["--compile-only", "--checkpoint", str(folder), "--cache", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: 9 programs ready after ") and f"kept in {program_folder().parent}" in said and list(program_folder().iterdir())
    assert "no video is given" in refusal(capsys, ["--query", "ring"])


def test_bad_videos(folder, tmp_path, capsys):  # noqa: F811
    text, nothing = tmp_path / "text.mp4", tmp_path / "nothing.mp4"
    text.write_text("this is no video\n" * 100)
    nothing.touch()
    for path, message in ((tmp_path / "missing.mp4", "no such file"), (tmp_path, "is a directory"), (text, "not a video"), (nothing, "not a video")):
        said = refusal(capsys, [path, "--query", "ring", "--checkpoint", folder, "--cache", tmp_path / "cache", "--html", tmp_path / "out.html"])
        assert str(path) in said and message in said
    assert not (tmp_path / "out.html").exists()


def test_ctrl_c_is_130_and_leaves_nothing(video, folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Grounder, "ground", interrupted)
    arguments = [str(a) for a in (video, "--query", "ring", "--checkpoint", folder, "--cache", tmp_path / "cache", "--json", tmp_path / "out.json")]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: ground.main(arguments))
    assert ended.value.code == 130 and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("text", "found"), [("90", 90), ("1:30", 90), ("01:00:01.5", 3601.5), ("0", 0), ("7200", 7200)])
def test_times(text, found):
    assert ground.seconds("--from", text) == found


@pytest.mark.parametrize("text", ["", "-5", "1:99", "1:2:3:4", "1h", "nan", "1:-2"])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match="is not a time"):
        ground.seconds("--from", text)
