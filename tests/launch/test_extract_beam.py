"""The same work as a Beam pipeline, on the direct runner."""

from __future__ import annotations

import json
import sys

import pytest

from launch import cli, extract_beam
from tests.launch.test_extract import RATE, encoded, files, films, model, whole  # noqa: F401  fixtures


def call(videos, model, out, *more):  # noqa: F811
    return extract_beam.main([str(x) for x in (videos, "--checkpoint", model, "--out", out, "--rate", RATE, *more)])


def test_without_beam_one_line_says_so(model, films, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: call(films, model, tmp_path))
    assert ended.value.code == 2 and 'pip install "revision-jax[beam]"' in capsys.readouterr().err


def test_the_stores_are_those_of_one_process(model, films, whole, tmp_path, encoded, capsys):  # noqa: F811
    pytest.importorskip("apache_beam")
    (films / "broken.mp4").write_text("no video")
    try:
        assert call(films, model, tmp_path, "--", "--runner=DirectRunner") == 1
        said = capsys.readouterr()
        assert "2 videos encoded (1320 frames), 0 were there, 1 failed" in said.out and "broken.mp4" in said.err
        assert files(tmp_path) == ["a.features", "deep/b.features", "extract_report.jsonl"]
        for name in files(whole):
            assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
        report = [json.loads(line) for line in (tmp_path / "extract_report.jsonl").read_text().splitlines()]
        assert {entry["video_id"]: entry["what"] for entry in report} == {"a": "written", "deep/b": "written", "broken": "failed"}
        # Again: nothing is done twice, and the report is the new one.
        encoded.clear()
        assert call(films, model, tmp_path) == 1 and not encoded
        assert "0 videos encoded (0 frames), 2 were there, 1 failed" in capsys.readouterr().out
    finally:
        (films / "broken.mp4").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option"], "--no-such-option"), (["--", "--runner=NoSuchRunner"], "Beam does not take"), (["--rate", "0"], "--rate: must be above 0"),
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint folder"),
    ],
)  # fmt: skip
def test_bad_arguments(model, films, tmp_path, capsys, arguments, message):  # noqa: F811
    pytest.importorskip("apache_beam")
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: call(films, model, tmp_path / "out", *arguments))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()
